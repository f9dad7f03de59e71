import { useSearchParams } from 'react-router';

/** Filters that are in the address. To change one is to begin the list anew. */
export function useFilters<Name extends string>(...names: Name[]): [Partial<Record<Name, string>>, (name: Name, value: string | null) => void] {
  const [params, setParams] = useSearchParams();
  const values: Partial<Record<Name, string>> = {};
  for (const name of names) {
    const value = params.get(name);
    if (value !== null) values[name] = value;
  }
  const set = (name: Name, value: string | null) =>
    setParams(
      (params) => {
        params.delete('cursor');
        if (value === null || value === '') params.delete(name);
        else params.set(name, value);
        return params;
      },
      { replace: true },
    );
  return [values, set];
}
