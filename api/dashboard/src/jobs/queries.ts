import { keepPreviousData, queryOptions } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';

export type UserJob = Schema<'UserJob'>;
export type Status = UserJob['status'];

export const STATUSES: Status[] = ['queued', 'running', 'completed', 'failed', 'cancelled'];

export function jobsQuery(filter: { status?: Status; user_id?: string; session_id?: string; cursor?: string; limit?: number }) {
  return queryOptions({
    queryKey: ['jobs', filter],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/jobs', { params: { query: filter }, signal })),
    refetchInterval: 3_000,
    placeholderData: keepPreviousData,
  });
}

export function jobQuery(id: string) {
  return queryOptions({
    queryKey: ['jobs', id],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/jobs/{id}', { params: { path: { id } }, signal })),
    refetchInterval: ({ state }) => (state.data !== undefined && hasEnded(state.data.status) ? false : 3_000),
  });
}

export function hasEnded(status: Status): boolean {
  return status === 'completed' || status === 'failed' || status === 'cancelled';
}

export function cancelJob(id: string): Promise<UserJob> {
  return answered(client.POST('/api/admin/jobs/{id}/cancel', { params: { path: { id } } }));
}

export function retryDeadLetter(id: string): Promise<UserJob> {
  return answered(client.POST('/api/admin/dead-letters/{id}/retry', { params: { path: { id } } }));
}
