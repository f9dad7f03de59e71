import { useLocation, useSearchParams } from 'react-router';

import { isRecord } from '../client/problem';

export interface Cursor {
  cursor: string | undefined;
  isFirst: boolean;
  next: (cursor: string) => void;
  back: () => void;
}

/**
 * The place in a list that is read page by page. It is in the address, so a reload stays there; the ways back are in
 * the entry of the history, so that the browser's own way back has the right ones.
 */
export function useCursor(): Cursor {
  const [params, setParams] = useSearchParams();
  const before = beforeOf(useLocation().state);
  const cursor = params.get('cursor');
  const go = (to: string | null, before: (string | null)[]) =>
    setParams(
      (params) => {
        if (to === null) params.delete('cursor');
        else params.set('cursor', to);
        return params;
      },
      { state: { before } },
    );
  return {
    cursor: cursor ?? undefined,
    isFirst: cursor === null,
    next: (next) => go(next, [...before, cursor]),
    // Of a page that was opened by its address, the ones before it are not known: the first is the way back.
    back: () => go(before.at(-1) ?? null, before.slice(0, -1)),
  };
}

function beforeOf(state: unknown): (string | null)[] {
  const before = isRecord(state) ? state.before : null;
  return Array.isArray(before) ? before.map((cursor: unknown) => (typeof cursor === 'string' ? cursor : null)) : [];
}
