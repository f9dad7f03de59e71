import { keepPreviousData, queryOptions } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';

export type UserSession = Schema<'UserSession'>;

export function sessionsQuery(filter: { user_id?: string; cursor?: string }) {
  return queryOptions({
    queryKey: ['sessions', filter],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/sessions', { params: { query: filter }, signal })),
    placeholderData: keepPreviousData,
  });
}

export function sessionQuery(id: string) {
  return queryOptions({
    queryKey: ['sessions', id],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/sessions/{id}', { params: { path: { id } }, signal })),
  });
}

/** Each answer is noted in the audit log as somebody's look at what was said: only a look asks for it. */
export function messagesQuery(id: string, cursor?: string) {
  return queryOptions({
    refetchOnWindowFocus: false,
    refetchOnReconnect: false,
    queryKey: ['sessions', id, 'messages', cursor],
    queryFn: ({ signal }) =>
      answered(client.GET('/api/admin/sessions/{id}/messages', { params: { path: { id }, query: { cursor } }, signal })),
    placeholderData: keepPreviousData,
  });
}

/** Only of one's own: what is in a workspace is its owner's alone. */
export function filesQuery(id: string, cursor?: string) {
  return queryOptions({
    queryKey: ['sessions', id, 'files', cursor],
    queryFn: ({ signal }) =>
      answered(client.GET('/api/sessions/{id}/files', { params: { path: { id }, query: { cursor } }, signal })),
    placeholderData: keepPreviousData,
  });
}

export async function deleteSession(id: string): Promise<void> {
  await answered(client.DELETE('/api/admin/sessions/{id}', { params: { path: { id } } }));
}

/** A file as the browser can keep it. */
export function getFile(id: string, path: string): Promise<Blob> {
  return answered(client.GET('/api/sessions/{id}/files/{path}', { params: { path: { id, path } }, parseAs: 'blob' }));
}
