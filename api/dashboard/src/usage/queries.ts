import { keepPreviousData, queryOptions } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';

export type Row = Schema<'UsageRow'>;

export const GROUPS = [
  { value: 'day', label: 'Day' },
  { value: 'model', label: 'Model' },
  { value: 'user', label: 'User' },
  { value: 'key', label: 'API key' },
  { value: 'session', label: 'Session' },
] as const;

export type Group = (typeof GROUPS)[number]['value'];

export function usageQuery(filter: { from: string; to: string; group_by: Group }) {
  return queryOptions({
    queryKey: ['usage', filter],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/usage', { params: { query: filter }, signal })),
    placeholderData: keepPreviousData,
    refetchInterval: 30_000,
  });
}
