import { BarChart, LineChart } from '@mantine/charts';
import { Paper, SimpleGrid, Text, Title } from '@mantine/core';
import type { ReactNode } from 'react';

import type { Schema } from '../client/client';
import { formatCost, formatCount, formatMs } from '../parts/format';

type Stats = Schema<'ServiceStats'>;

const HEIGHT = 200;

export function Charts({ stats }: { stats: Stats }) {
  const nameOf = bucketNames(stats);
  const data = stats.series.map((bucket) => ({ ...bucket, when: nameOf(bucket.at) }));
  const shared = { h: HEIGHT, data, dataKey: 'when', tickLine: 'none' as const, gridAxis: 'x' as const };
  const axis = { xAxisProps: { minTickGap: 24 } };
  const { completed, failed, cancelled } = stats.totals;
  return (
    <SimpleGrid cols={{ base: 1, lg: 2 }}>
      <Chart title="Jobs that ended" isEmpty={completed + failed + cancelled === 0}>
        <BarChart
          {...shared}
          {...axis}
          type="stacked"
          withLegend
          legendProps={{ itemSorter: null }}
          valueFormatter={formatCount}
          // There is no half of a job.
          yAxisProps={{ allowDecimals: false }}
          series={[
            { name: 'completed', label: 'Completed', color: 'green.7' },
            { name: 'failed', label: 'Failed', color: 'red.7' },
            { name: 'cancelled', label: 'Cancelled', color: 'gray.5' },
          ]}
        />
      </Chart>
      <Chart title="First text, half of the jobs within" isEmpty={data.every(({ first_text_p50_ms }) => first_text_p50_ms == null)}>
        <LineChart
          {...shared}
          {...axis}
          connectNulls
          curveType="monotone"
          valueFormatter={formatMs}
          yAxisProps={{ width: 70 }}
          series={[{ name: 'first_text_p50_ms', label: 'First text', color: 'blue.6' }]}
        />
      </Chart>
      <Chart title="Tokens" isEmpty={data.every(({ tokens }) => tokens === 0)}>
        <BarChart
          {...shared}
          {...axis}
          valueFormatter={formatCount}
          series={[{ name: 'tokens', label: 'Tokens', color: 'teal.6' }]}
        />
      </Chart>
      <Chart title="Cost" isEmpty={data.every(({ cost_usd }) => cost_usd === 0)}>
        <BarChart
          {...shared}
          {...axis}
          valueFormatter={formatCost}
          yAxisProps={{ width: 70 }}
          series={[{ name: 'cost_usd', label: 'Cost', color: 'clay.6' }]}
        />
      </Chart>
    </SimpleGrid>
  );
}

function Chart({ title, isEmpty, children }: { title: string; isEmpty: boolean; children: ReactNode }) {
  return (
    <Paper p="md" component="figure" m={0} aria-label={title}>
      <Title order={3} size="h6" mb="md">
        {title}
      </Title>
      {isEmpty ? (
        <Text c="dimmed" size="sm" h={HEIGHT} ta="center" pt={HEIGHT / 2 - 20}>
          Nothing in this time
        </Text>
      ) : (
        children
      )}
    </Paper>
  );
}

/** What a bucket is called on an axis: its time within a day, else its day. */
function bucketNames({ bucket_secs, window }: Stats): (at: string) => string {
  const isWithinDay = window === '1h' || window === '24h';
  const format = new Intl.DateTimeFormat(undefined, {
    ...(isWithinDay ? {} : { day: 'numeric', month: 'short' }),
    ...(bucket_secs < 86_400 ? { hour: '2-digit', minute: '2-digit' } : { timeZone: 'UTC' }),
  });
  return (at) => format.format(new Date(at));
}
