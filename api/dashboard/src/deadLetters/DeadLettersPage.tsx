import { Anchor, Button, Text } from '@mantine/core';
import { IconMailOff, IconRotateClockwise } from '@tabler/icons-react';
import { keepPreviousData, queryOptions, useMutation, useQuery } from '@tanstack/react-query';
import { Link } from 'react-router';

import { answered, client } from '../client/client';
import { retryDeadLetter, type UserJob } from '../jobs/queries';
import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { formatCount, shortId } from '../parts/format';
import { Id } from '../parts/Id';
import { tellProblem, tellSuccess } from '../parts/notify';
import { Page } from '../parts/Page';
import { Pager } from '../parts/Pager';
import { useCursor } from '../parts/useCursor';
import { UserLink } from '../users/UserLink';

function deadLettersQuery(filter: { cursor?: string }) {
  return queryOptions({
    queryKey: ['dead-letters', filter],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/dead-letters', { params: { query: filter }, signal })),
    refetchInterval: 10_000,
    placeholderData: keepPreviousData,
  });
}

const COLUMNS: Column<UserJob>[] = [
  { label: 'Job', cell: ({ id }) => <Id id={id} to={`/jobs/${id}`} /> },
  { label: 'User', cell: ({ user_id }) => <UserLink id={user_id} /> },
  {
    label: 'Why',
    cell: ({ error }) => (
      <>
        <Text size="sm" fw={600} ff="monospace">
          {error?.code ?? 'unknown'}
        </Text>
        <Text size="sm" c="dimmed" maw={380} style={{ overflowWrap: 'anywhere' }} lineClamp={2}>
          {error?.detail}
        </Text>
      </>
    ),
  },
  { label: 'Attempts', isFigure: true, cell: ({ attempt }) => formatCount(attempt) },
  { label: 'Given up', cell: ({ finished_at }) => <Ago at={finished_at} /> },
  { label: 'Try again', isAction: true, cell: (job) => <Retry job={job} /> },
];

export function DeadLettersPage() {
  const at = useCursor();
  const letters = useQuery(deadLettersQuery({ cursor: at.cursor }));
  return (
    <Page title="Dead letters" description="Jobs that were given up after all their attempts. Trying one again makes a new job of it.">
      <Answer query={letters} loading={<Lines count={6} height={56} />}>
        {({ data, next_cursor }) =>
          data.length === 0 ? (
            <Empty icon={IconMailOff} title="No dead letters">
              No job was given up. One comes here when its workers were lost, or when it failed in a way that may pass, too often.
            </Empty>
          ) : (
            <>
              <DataTable caption="Dead letters" columns={COLUMNS} rows={data} keyOf={({ id }) => id} minWidth={860} />
              <Pager at={at} next={next_cursor} />
            </>
          )
        }
      </Answer>
    </Page>
  );
}

function Retry({ job }: { job: UserJob }) {
  const retry = useMutation({
    mutationFn: () => retryDeadLetter(job.id),
    onSuccess: ({ id }) =>
      tellSuccess(
        <>
          Sent again as{' '}
          <Anchor component={Link} to={`/jobs/${id}`} size="sm">
            {shortId(id)}
          </Anchor>
        </>,
      ),
    onError: tellProblem,
  });
  const retriedAs = job.retried_as ?? retry.data?.id;
  if (retriedAs !== undefined) {
    return (
      <Anchor component={Link} to={`/jobs/${retriedAs}`} size="sm">
        Tried again
      </Anchor>
    );
  }
  return (
    <Button
      size="xs"
      variant="default"
      leftSection={<IconRotateClockwise size={14} />}
      loading={retry.isPending}
      onClick={() => retry.mutate()}
      aria-label={`Try ${job.id} again`}
    >
      Try again
    </Button>
  );
}
