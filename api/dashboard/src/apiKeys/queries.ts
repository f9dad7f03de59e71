import { keepPreviousData, queryOptions } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';

export type ApiKey = Schema<'ApiKey'>;
export type Scope = ApiKey['scopes'][number];

export function keysQuery(userId: string, filter: { cursor?: string }) {
  return queryOptions({
    queryKey: ['api-keys', userId, filter],
    queryFn: ({ signal }) =>
      answered(client.GET('/api/admin/users/{id}/api-keys', { params: { path: { id: userId }, query: filter }, signal })),
    placeholderData: keepPreviousData,
  });
}

export function createKey(userId: string, body: Schema<'CreateApiKey'>): Promise<Schema<'CreatedApiKey'>> {
  return answered(client.POST('/api/admin/users/{id}/api-keys', { params: { path: { id: userId } }, body }));
}

export async function revokeKey(id: string): Promise<void> {
  await answered(client.DELETE('/api/admin/api-keys/{id}', { params: { path: { id } } }));
}

export function stateOf({ revoked_at, expires_at }: ApiKey, now: number): 'revoked' | 'expired' | 'active' {
  if (revoked_at != null) return 'revoked';
  return expires_at != null && Date.parse(expires_at) <= now ? 'expired' : 'active';
}
