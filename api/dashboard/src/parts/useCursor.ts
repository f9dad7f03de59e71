import { useState } from 'react';
import { useSearchParams } from 'react-router';

export interface Cursor {
  cursor: string | undefined;
  isFirst: boolean;
  next: (cursor: string) => void;
  back: () => void;
}

/** The place in a list that is read page by page; it is in the address, so a reload stays there. */
export function useCursor(): Cursor {
  const [params, setParams] = useSearchParams();
  const [before, setBefore] = useState<(string | null)[]>([]);
  const cursor = params.get('cursor');
  const go = (to: string | null) =>
    setParams((params) => {
      if (to === null) params.delete('cursor');
      else params.set('cursor', to);
      return params;
    });
  return {
    cursor: cursor ?? undefined,
    isFirst: cursor === null,
    next: (next) => {
      setBefore([...before, cursor]);
      go(next);
    },
    // Of a page that was opened by its address, the ones before it are not known: the first is the way back.
    back: () => {
      go(before.at(-1) ?? null);
      setBefore(before.slice(0, -1));
    },
  };
}
