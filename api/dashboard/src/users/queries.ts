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

const directory = queryOptions({ ...usersQuery({ limit: 100 }), staleTime: 60_000 });

/** The accounts to choose from, and to call by their address: the first hundred. */
export function useDirectory(): UserDetails[] {
  return useQuery(directory).data?.data ?? [];
}
