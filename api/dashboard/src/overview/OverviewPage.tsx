import { Anchor, Grid, Group, Progress, SegmentedControl, SimpleGrid, Stack, Title } from '@mantine/core';
import { IconBolt, IconHourglass, IconMailX, IconServer2 } from '@tabler/icons-react';
import { keepPreviousData, queryOptions, useQuery } from '@tanstack/react-query';
import { Link } from 'react-router';

import { answered, client, type Schema } from '../client/client';
import { useSystem } from '../live/hooks';
import { Answer, Lines } from '../parts/Answer';
import { formatCost, formatCount, formatMs } from '../parts/format';
import { Page } from '../parts/Page';
import { Stat } from '../parts/Stat';
import { useFilters } from '../parts/useFilters';
import { daysAgo, startOf } from '../usage/days';
import { usageQuery } from '../usage/queries';
import { Charts } from './Charts';
import { ModelTable } from './ModelTable';

type Stats = Schema<'ServiceStats'>;
type Window = Stats['window'];

const WINDOWS: { value: Window; label: string }[] = [
  { value: '1h', label: '1 hour' },
  { value: '24h', label: '24 hours' },
  { value: '7d', label: '7 days' },
  { value: '30d', label: '30 days' },
];

export function statsQuery(window: Window) {
  return queryOptions({
    queryKey: ['stats', window],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/stats', { params: { query: { window } }, signal })),
    refetchInterval: 10_000,
    placeholderData: keepPreviousData,
  });
}

export function OverviewPage() {
  const [filters, setFilter] = useFilters('window');
  const window = WINDOWS.find(({ value }) => value === filters.window)?.value ?? '24h';
  const stats = useQuery(statsQuery(window));
  return (
    <Page title="Overview" description="How the service stands now, and how it went.">
      <Answer query={stats} loading={<Lines count={4} height={110} />}>
        {(stats) => (
          <Stack gap="xl">
            <Now stats={stats} />
            <Stack gap="md">
              <Group justify="space-between">
                <Title order={2} size="h4">
                  How it went
                </Title>
                <SegmentedControl
                  data={WINDOWS}
                  value={window}
                  onChange={(window) => setFilter('window', window)}
                  aria-label="How far back"
                  size="xs"
                />
              </Group>
              <Totals stats={stats} />
              <Charts stats={stats} />
              <ModelTable models={stats.models} />
            </Stack>
          </Stack>
        )}
      </Answer>
    </Page>
  );
}

/** What the socket tells each second; until it does, what the figures said. */
function Now({ stats: { now } }: { stats: Stats }) {
  const news = useSystem();
  const queue = news?.queue ?? {
    queued: now.queue.depth,
    running: now.jobs.running,
    oldest_wait_ms: now.queue.oldest_wait_ms ?? null,
    dead_letters: now.dead_letters,
    workers: now.workers.active + now.workers.draining,
    slots: now.workers.slots,
  };
  const load = queue.slots === 0 ? 0 : Math.min((100 * queue.running) / queue.slots, 100);
  const draining = news === null ? now.workers.draining : news.workers.filter(({ state }) => state === 'draining').length;
  return (
    <SimpleGrid cols={{ base: 2, lg: 4 }}>
      <Stat
        label="Running jobs"
        icon={IconBolt}
        value={formatCount(queue.running)}
        hint={`of ${formatCount(queue.slots)} slots`}
      >
        <Progress value={load} size="sm" mt="sm" aria-label="Slots in use" color={load >= 100 ? 'yellow.6' : 'clay.6'} />
      </Stat>
      <Stat
        label="Waiting jobs"
        icon={IconHourglass}
        value={formatCount(queue.queued)}
        hint={queue.queued === 0 || queue.oldest_wait_ms === null ? 'nobody waits' : `the first for ${formatMs(queue.oldest_wait_ms)}`}
      />
      <Stat
        label="Workers"
        icon={IconServer2}
        value={formatCount(queue.workers)}
        hint={draining > 0 ? `${draining} of them draining` : queue.workers === 0 ? 'no job can run' : 'all of them take jobs'}
      />
      <Stat
        label="Dead letters"
        icon={IconMailX}
        value={formatCount(queue.dead_letters)}
        hint={queue.dead_letters === 0 ? 'no job was given up' : <Anchor component={Link} to="/dead-letters" size="sm">See what was given up</Anchor>}
      />
    </SimpleGrid>
  );
}

function Totals({ stats: { totals } }: { stats: Stats }) {
  const today = useQuery(usageQuery({ from: startOf(daysAgo(0)), to: startOf(daysAgo(-1)), group_by: 'day' }));
  const ended = totals.completed + totals.failed + totals.cancelled;
  const { input, output, cache_read, cache_write } = totals.tokens;
  return (
    <Grid>
      {[
        <Stat
          key="jobs"
          label="Jobs that ended"
          value={formatCount(ended)}
          hint={`${formatCount(totals.failed)} failed, ${formatCount(totals.cancelled)} cancelled`}
        />,
        <Stat
          key="throughput"
          label="Throughput"
          value={`${totals.ended_per_hour < 10 ? totals.ended_per_hour.toPrecision(2) : formatCount(totals.ended_per_hour)}/h`}
          hint={`${formatCount(totals.accepted)} accepted`}
        />,
        <Stat
          key="text"
          label="First text"
          value={formatMs(totals.first_text.p50_ms)}
          hint={`half of them; 95 % within ${formatMs(totals.first_text.p95_ms)}`}
        />,
        <Stat
          key="wait"
          label="Wait in the queue"
          value={formatMs(totals.queue_wait.p50_ms)}
          hint={`half of them; 95 % within ${formatMs(totals.queue_wait.p95_ms)}`}
        />,
        <Stat
          key="tokens"
          label="Tokens"
          value={formatCount(input + output + cache_read + cache_write)}
          hint={`${formatCount(output)} of them written`}
        />,
        <Stat
          key="cost"
          label="Cost"
          value={formatCost(totals.cost_usd)}
          hint={today.data === undefined ? 'of the attempts that ended' : `${formatCost(today.data.total.cost_usd)} today (UTC)`}
        />,
      ].map((stat) => (
        <Grid.Col key={stat.key} span={{ base: 6, lg: 4 }}>
          {stat}
        </Grid.Col>
      ))}
    </Grid>
  );
}
