import { useDebouncedCallback } from '@mantine/hooks';
import { useState } from 'react';

/** How long nobody types before it counts. */
export const REST_MS = 250;

/**
 * What is being typed where `value` is in the address, which comes later: the field cannot wait for it, and whoever
 * types does not mean each letter. It is settled once the typing rests; a `value` from elsewhere takes its place.
 */
export function useTyped(value: string, settle: (value: string) => void): [typed: string, type: (typed: string) => void] {
  const [{ typed, settled, seen }, set] = useState({ typed: value, settled: value, seen: value });
  if (value !== seen) set({ typed: value === settled ? typed : value, settled: value, seen: value });
  const rest = useDebouncedCallback((typed: string) => {
    set((is) => ({ ...is, settled: typed }));
    settle(typed);
  }, REST_MS);
  const type = (typed: string) => {
    set((is) => ({ ...is, typed }));
    rest(typed);
  };
  return [typed, type];
}
