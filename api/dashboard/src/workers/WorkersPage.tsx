import { Button, Group, Progress, Text } from '@mantine/core';
import { IconServerOff } from '@tabler/icons-react';
import { keepPreviousData, queryOptions, useMutation, useQuery } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';
import { useSystem } from '../live/hooks';
import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { ask } from '../parts/confirm';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { Id } from '../parts/Id';
import { tellProblem, tellSuccess } from '../parts/notify';
import { Page } from '../parts/Page';
import { Pager } from '../parts/Pager';
import { State } from '../parts/State';
import { useCursor } from '../parts/useCursor';

type Worker = Schema<'Worker'>;

function workersQuery(filter: { cursor?: string }) {
  return queryOptions({
    queryKey: ['workers', filter],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/workers', { params: { query: filter }, signal })),
    refetchInterval: 5_000,
    placeholderData: keepPreviousData,
  });
}

const COLUMNS: Column<Worker>[] = [
  {
    label: 'Worker',
    cell: ({ id, name }) => (
      <>
        <Text size="sm" fw={600}>
          {name}
        </Text>
        <Id id={id} />
      </>
    ),
  },
  { label: 'State', cell: ({ state }) => <State is={state} /> },
  { label: 'Host', cell: ({ host }) => host },
  { label: 'Version', isMinor: true, cell: ({ version }) => version },
  { label: 'Slots', cell: (worker) => <Slots worker={worker} /> },
  { label: 'CLI processes', isMinor: true, cell: ({ cli_processes }) => cli_processes ?? '–' },
  { label: 'Joined', isMinor: true, cell: ({ started_at }) => <Ago at={started_at} /> },
  { label: 'Last heard of', cell: ({ last_beat_at }) => <Ago at={last_beat_at} /> },
  { label: 'Drain', isAction: true, cell: (worker) => <Drain worker={worker} /> },
];

export function WorkersPage() {
  const at = useCursor();
  const workers = useQuery(workersQuery({ cursor: at.cursor }));
  const news = useSystem();
  return (
    <Page title="Workers" description="The processes that run jobs. Each takes as many at once as it has slots.">
      <Answer query={workers} loading={<Lines count={4} height={64} />}>
        {({ data, next_cursor }) =>
          data.length === 0 ? (
            <Empty icon={IconServerOff} title="No worker has joined">
              Jobs wait until one does. Start a <code>worker</code> with the same database and Redis as this server.
            </Empty>
          ) : (
            <>
              <DataTable
                caption="Workers"
                columns={COLUMNS}
                // The socket is ahead of the list by seconds.
                rows={data.map((worker) => ({ ...worker, ...news?.workers.find(({ id }) => id === worker.id) }))}
                keyOf={({ id }) => id}
                minWidth={900}
              />
              <Pager at={at} next={next_cursor} />
            </>
          )
        }
      </Answer>
    </Page>
  );
}

function Slots({ worker: { name, running, slots, state } }: { worker: Worker }) {
  if (state === 'dead') return <>–</>;
  return (
    <Group gap="xs" wrap="nowrap" miw={120}>
      <Progress value={slots === 0 ? 0 : (100 * running) / slots} size="sm" flex={1} miw={60} aria-label={`Slots of ${name} in use`} />
      <Text size="sm" className="numbers">
        {running} / {slots}
      </Text>
    </Group>
  );
}

function Drain({ worker }: { worker: Worker }) {
  const drain = useMutation({
    mutationFn: () => answered(client.POST('/api/admin/workers/{id}/drain', { params: { path: { id: worker.id } } })),
    onSuccess: () => tellSuccess(`${worker.name} takes no more jobs.`),
    onError: tellProblem,
  });
  if (worker.state !== 'active') return null;
  return (
    <Button
      size="xs"
      variant="default"
      loading={drain.isPending}
      aria-label={`Drain ${worker.name}`}
      onClick={() =>
        ask({
          title: `Drain ${worker.name}?`,
          children: 'It takes no more jobs, lets those it runs end or hands them back, and then ends itself. It has to be started again to return.',
          confirm: 'Drain it',
          act: () => drain.mutate(),
        })
      }
    >
      Drain
    </Button>
  );
}
