import { queryOptions } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';

export type ChatBody = Schema<'CreateChat'>;
export type Session = Schema<'Session'>;

export const ownToolsQuery = queryOptions({
  queryKey: ['own-tools'],
  queryFn: ({ signal }) => answered(client.GET('/api/tools', { signal })),
  staleTime: 60_000,
});

export const ownSessionsQuery = queryOptions({
  queryKey: ['own-sessions'],
  queryFn: ({ signal }) => answered(client.GET('/api/sessions', { params: { query: { limit: 100 } }, signal })),
});

export function sendChat(body: ChatBody): Promise<Schema<'Job'>> {
  return answered(client.POST('/api/chat', { body })) as Promise<Schema<'Job'>>;
}

export function createSession(title: string): Promise<Session> {
  return answered(client.POST('/api/sessions', { body: { title } }));
}

export function cancelOwnJob(id: string): Promise<Schema<'Job'>> {
  return answered(client.POST('/api/jobs/{id}/cancel', { params: { path: { id } } }));
}
