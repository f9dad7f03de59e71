import { Stack, Title } from '@mantine/core';

import type { Schema } from '../client/client';
import { DataTable } from '../parts/DataTable';
import { formatCost, formatCount } from '../parts/format';

export function ModelTable({ models }: { models: Schema<'ModelStats'>[] }) {
  if (models.length === 0) return null;
  return (
    <Stack gap="sm" mt="md">
      <Title order={2} size="h4">
        Models
      </Title>
      <DataTable
        caption="What each model was used for"
        rows={models}
        keyOf={({ model }) => model ?? ''}
        columns={[
          { label: 'Model', cell: ({ model }) => model ?? 'ended before one answered' },
          { label: 'Attempts', isFigure: true, cell: ({ attempts }) => formatCount(attempts) },
          { label: 'Read', isFigure: true, cell: ({ tokens }) => formatCount(tokens.input) },
          { label: 'Written', isFigure: true, cell: ({ tokens }) => formatCount(tokens.output) },
          { label: 'From the cache', isFigure: true, cell: ({ tokens }) => formatCount(tokens.cache_read) },
          { label: 'Cost', isFigure: true, cell: ({ cost_usd }) => formatCost(cost_usd) },
        ]}
      />
    </Stack>
  );
}
