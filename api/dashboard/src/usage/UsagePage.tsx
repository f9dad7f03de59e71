import { BarChart } from '@mantine/charts';
import { Group, Paper, SegmentedControl, SimpleGrid, Text, TextInput, Title } from '@mantine/core';
import { IconCoins } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import type { ReactNode } from 'react';

import { Answer, Lines } from '../parts/Answer';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { formatCost, formatCount, formatDay, formatMs, shortId } from '../parts/format';
import { Id } from '../parts/Id';
import { Page } from '../parts/Page';
import { Stat } from '../parts/Stat';
import { useFilters } from '../parts/useFilters';
import { useTyped } from '../parts/useTyped';
import { useNewestUsers } from '../users/queries';
import { UserLink } from '../users/UserLink';
import { dayAfter, daysAgo, isDay, startOf } from './days';
import { type Group as By, GROUPS, type Row, usageQuery } from './queries';

export function UsagePage() {
  const [filters, setFilter] = useFilters('from', 'to', 'by');
  const from = dayIn(filters.from) ?? daysAgo(29);
  const to = dayIn(filters.to) ?? daysAgo(0);
  const by = GROUPS.find(({ value }) => value === filters.by)?.value ?? 'day';
  const usage = useQuery(usageQuery({ from: startOf(from), to: startOf(dayAfter(to)), group_by: by }));
  return (
    <Page title="Usage" description="What everybody’s jobs used and cost, by UTC days.">
      <Group align="flex-end">
        <DayInput label="From" value={from} max={to} choose={(day) => setFilter('from', day)} />
        <DayInput label="To" value={to} min={from} max={daysAgo(0)} choose={(day) => setFilter('to', day)} />
        <SegmentedControl aria-label="Group by" data={[...GROUPS]} value={by} onChange={(by) => setFilter('by', by)} />
      </Group>
      <Answer query={usage} loading={<Lines count={5} height={90} />}>
        {({ data, total, truncated }) =>
          data.length === 0 ? (
            <Empty icon={IconCoins} title="Nothing was used">
              No attempt of a job ended in these days.
            </Empty>
          ) : (
            <>
              <SimpleGrid cols={{ base: 2, md: 4 }}>
                <Stat label="Cost" value={formatCost(total.cost_usd)} hint={total.estimated > 0 && `${formatCount(total.estimated)} estimated`} />
                <Stat label="Jobs" value={formatCount(total.jobs)} hint={total.requests === 1 ? '1 attempt' : `${formatCount(total.requests)} attempts`} />
                <Stat
                  label="Tokens"
                  value={formatCount(tokensOf(total))}
                  hint={`${formatCount(total.output_tokens)} of them written`}
                />
                <Stat label="Time" value={formatMs(total.duration_ms)} hint="of all attempts together" />
              </SimpleGrid>
              <CostChart rows={data} by={by} />
              <DataTable caption="Usage" columns={[{ label: labelOf(by), cell: (row) => nameIn(row, by) }, ...FIGURES]} rows={data} keyOf={keyIn(by)} minWidth={860} />
              {truncated && (
                <Text size="sm" c="dimmed">
                  There are more than are told here; the sums are of all of them.
                </Text>
              )}
            </>
          )
        }
      </Answer>
    </Page>
  );
}

/** A day of the address, which may be anything. */
function dayIn(text: string | undefined): string | undefined {
  return text !== undefined && isDay(text) ? text : undefined;
}

interface DayInputProps {
  label: string;
  value: string;
  min?: string;
  max: string;
  choose: (day: string) => void;
}

function DayInput({ label, value, min, max, choose }: DayInputProps) {
  // One that is typed is none until it is whole.
  const [typed, type] = useTyped(value, (day) => isDay(day) && choose(day));
  return (
    <TextInput
      label={label}
      type="date"
      value={typed}
      min={min}
      max={max}
      onChange={({ currentTarget }) => type(currentTarget.value)}
      onBlur={() => {
        if (!isDay(typed)) type(value);
      }}
    />
  );
}

const FIGURES: Column<Row>[] = [
  { label: 'Jobs', isFigure: true, cell: ({ jobs }) => formatCount(jobs) },
  { label: 'Attempts', isFigure: true, cell: ({ requests }) => formatCount(requests) },
  { label: 'Read', isFigure: true, cell: ({ input_tokens }) => formatCount(input_tokens) },
  { label: 'Written', isFigure: true, cell: ({ output_tokens }) => formatCount(output_tokens) },
  { label: 'From the cache', isFigure: true, cell: ({ cache_read_tokens }) => formatCount(cache_read_tokens) },
  { label: 'To the cache', isFigure: true, cell: ({ cache_write_tokens }) => formatCount(cache_write_tokens) },
  { label: 'Cost', isFigure: true, cell: ({ cost_usd }) => formatCost(cost_usd) },
];

function tokensOf(row: Pick<Row, 'input_tokens' | 'output_tokens' | 'cache_read_tokens' | 'cache_write_tokens'>): number {
  return row.input_tokens + row.output_tokens + row.cache_read_tokens + row.cache_write_tokens;
}

function labelOf(by: By): string {
  return GROUPS.find(({ value }) => value === by)?.label ?? by;
}

function keyIn(by: By): (row: Row) => string {
  return ({ day, model, user_id, api_key_id, session_id }) => ({ day, model, user: user_id, key: api_key_id, session: session_id })[by] ?? '';
}

function nameIn(row: Row, by: By): ReactNode {
  switch (by) {
    case 'day':
      return row.day == null ? '–' : formatDay(row.day);
    case 'model':
      return row.model ?? 'none answered';
    case 'user':
      return <UserLink id={row.user_id} />;
    case 'key':
      return row.api_key_id == null ? 'without a key: by login' : <Id id={row.api_key_id} />;
    case 'session':
      return row.session_id == null ? 'without a session' : <Id id={row.session_id} to={`/sessions/${row.session_id}`} />;
  }
}

/** As many bars as can be told apart. */
const MOST_BARS = 31;

function CostChart({ rows, by }: { rows: Row[]; by: By }) {
  const users = useNewestUsers();
  const textOf = (row: Row) => {
    if (by === 'day') return row.day == null ? '–' : formatDay(row.day);
    if (by === 'user') return users.find(({ id }) => id === row.user_id)?.email ?? shortId(row.user_id ?? '–');
    const key = keyIn(by)(row);
    return key === '' ? 'none' : shortId(key);
  };
  const shown = rows.slice(0, MOST_BARS);
  // Days come newest first, and are read the other way.
  if (by === 'day') shown.reverse();
  return (
    <Paper p="md" component="figure" m={0} aria-label={`Cost by ${labelOf(by).toLowerCase()}`}>
      <Title order={2} size="h6" mb="md">
        Cost by {labelOf(by).toLowerCase()}
      </Title>
      <BarChart
        h={220}
        data={shown.map((row) => ({ name: textOf(row), cost: row.cost_usd }))}
        dataKey="name"
        tickLine="none"
        valueFormatter={formatCost}
        yAxisProps={{ width: 70 }}
        xAxisProps={{ minTickGap: 16 }}
        maxBarWidth={48}
        series={[{ name: 'cost', label: 'Cost', color: 'clay.6' }]}
      />
    </Paper>
  );
}
