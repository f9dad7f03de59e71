import { Skeleton, Stack } from '@mantine/core';
import type { UseQueryResult } from '@tanstack/react-query';
import type { ReactNode } from 'react';

import { Failure } from './Failure';

interface AnswerProps<T> {
  query: UseQueryResult<T>;
  /** What stands there while it is loaded. */
  loading?: ReactNode;
  children: (data: T) => ReactNode;
}

/** What a request answered; its shape while it is on its way; its problem where it failed. */
export function Answer<T>({ query, loading = <Lines />, children }: AnswerProps<T>) {
  if (query.data !== undefined) return children(query.data);
  if (query.isError) return <Failure error={query.error} retry={() => void query.refetch()} />;
  return (
    <div aria-busy="true" aria-label="Loading" role="status">
      {loading}
    </div>
  );
}

export function Lines({ count = 6, height = 40 }: { count?: number; height?: number }) {
  return (
    <Stack gap="xs">
      {Array.from({ length: count }, (_, line) => (
        <Skeleton key={line} height={height} radius="md" />
      ))}
    </Stack>
  );
}
