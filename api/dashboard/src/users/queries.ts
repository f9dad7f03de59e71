import { queryOptions, useQuery } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';

export type UserDetails = Schema<'UserDetails'>;

export function usersQuery(filter: { query?: string; cursor?: string; limit?: number }) {
  return queryOptions({
    queryKey: ['users', filter],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/users', { params: { query: filter }, signal })),
  });
}

export function userQuery(id: string) {
  return queryOptions({
    queryKey: ['users', id],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/users/{id}', { params: { path: { id } }, signal })),
  });
}

/** For how long an account may be called what it was called. */
const NAMED_MS = 60_000;

/** The accounts to choose from: those with this in their address or name, the newest first. */
export function choiceQuery(query: string) {
  return queryOptions({ ...usersQuery({ limit: 100, ...(query === '' ? {} : { query }) }), staleTime: NAMED_MS });
}

/** The newest accounts, to call them by their address. */
export function useNewestUsers(): UserDetails[] {
  return useQuery(choiceQuery('')).data?.data ?? [];
}

/** An account to call by its address. The newest are asked for together, and one that is older by itself. */
export function useUser(id: string | null | undefined): UserDetails | undefined {
  const { data: newest } = useQuery(choiceQuery(''));
  const known = newest?.data.find((user) => user.id === id);
  // Where those are all there are, who is not among them is gone.
  const isOlder = id != null && newest?.next_cursor != null && known === undefined;
  const { data: older } = useQuery({ ...userQuery(id ?? ''), staleTime: NAMED_MS, enabled: isOlder });
  return known ?? older;
}
