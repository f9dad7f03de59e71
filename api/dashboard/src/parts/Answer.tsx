import { Skeleton, Stack } from '@mantine/core';
import type { UseQueryResult } from '@tanstack/react-query';
import { createContext, type ReactNode } from 'react';

import classes from './Answer.module.css';
import { Failure } from './Failure';

interface AnswerProps<T> {
  query: UseQueryResult<T>;
  /** What stands there while it is loaded. */
  loading?: ReactNode;
  children: (data: T) => ReactNode;
}

/** Whether what is shown answers a former question, while the answer to this one is on its way. */
export const IsFormer = createContext(false);

/**
 * What a request answered; its shape while it is on its way; its problem where it failed. What is not of now says so:
 * the answer to a former question is dim, one that could not be had anew has its age above it.
 */
export function Answer<T>({ query, loading = <Lines />, children }: AnswerProps<T>) {
  const retry = () => void query.refetch();
  if (query.data !== undefined) {
    return (
      <>
        {query.isError && <Failure error={query.error} retry={retry} shownSince={query.dataUpdatedAt} />}
        <div className={classes.answer} aria-busy={query.isPlaceholderData || undefined}>
          <IsFormer value={query.isPlaceholderData}>{children(query.data)}</IsFormer>
        </div>
      </>
    );
  }
  if (query.isError) return <Failure error={query.error} retry={retry} />;
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
