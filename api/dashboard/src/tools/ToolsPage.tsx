import { Group, Switch, Text, TextInput } from '@mantine/core';
import { IconSearch, IconTool } from '@tabler/icons-react';
import { queryOptions, useMutation, useQuery, useQueryClient } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';
import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { tellProblem, tellSuccess } from '../parts/notify';
import { Page } from '../parts/Page';
import { useFilters } from '../parts/useFilters';
import { useTyped } from '../parts/useTyped';

type InstalledTool = Schema<'InstalledTool'>;

const toolsQuery = queryOptions({
  queryKey: ['tools'],
  queryFn: ({ signal }) => answered(client.GET('/api/admin/tools', { signal })),
});

const COLUMNS: Column<InstalledTool>[] = [
  {
    label: 'Tool',
    cell: ({ name, description }) => (
      <>
        <Text size="sm" fw={600}>
          {name}
        </Text>
        <Text size="sm" c="dimmed" maw={420}>
          {description ?? 'This service does not know this tool.'}
        </Text>
      </>
    ),
  },
  { label: 'Acts on', cell: ({ category }) => category },
  { label: 'CLI versions', isMinor: true, cell: ({ cli_versions }) => cli_versions.join(', ') },
  { label: 'Last seen', isMinor: true, cell: ({ last_seen_at }) => <Ago at={last_seen_at} /> },
  { label: 'Jobs may use it', cell: (tool) => <OnOff tool={tool} /> },
];

export function ToolsPage() {
  const [{ name = '' }, setFilter] = useFilters('name');
  const [typed, type] = useTyped(name, (name) => setFilter('name', name));
  const tools = useQuery(toolsQuery);
  return (
    <Page title="Tools" description="What the CLI of your workers can do. A tool that is off is in no job, whoever asks for it.">
      <Group>
        <TextInput
          aria-label="Search the tools"
          placeholder="Search"
          leftSection={<IconSearch size={16} />}
          value={typed}
          onChange={({ currentTarget }) => type(currentTarget.value)}
          w={{ base: '100%', xs: 260 }}
        />
      </Group>
      <Answer query={tools} loading={<Lines count={8} height={56} />}>
        {({ data }) => {
          const words = typed.toLowerCase();
          const fitting = data.filter((tool) => `${tool.name} ${tool.description ?? ''} ${tool.category}`.toLowerCase().includes(words));
          if (fitting.length > 0) {
            return <DataTable caption="Tools" columns={COLUMNS} rows={fitting} keyOf={({ name }) => name} minWidth={780} />;
          }
          return (
            <Empty icon={IconTool} title={data.length === 0 ? 'No tools are known yet' : 'No such tool'}>
              {data.length === 0 ? 'A worker tells what its CLI has when it joins.' : 'None of the tools fits these words.'}
            </Empty>
          );
        }}
      </Answer>
    </Page>
  );
}

function OnOff({ tool: { name, enabled } }: { tool: InstalledTool }) {
  const queries = useQueryClient();
  const flip = useMutation({
    mutationFn: (enabled: boolean) =>
      answered(client.PUT('/api/admin/tools/{name}', { params: { path: { name } }, body: { enabled } })),
    onSuccess: (flipped) => {
      tellSuccess(`${name} is ${flipped.enabled ? 'on' : 'off'}.`);
      // The switch would go back for as long as the list takes.
      queries.setQueryData(toolsQuery.queryKey, (tools) => tools && { ...tools, data: tools.data.map((tool) => (tool.name === name ? flipped : tool)) });
    },
    onError: tellProblem,
  });
  const isOn = flip.isPending ? flip.variables : enabled;
  return (
    <Switch
      checked={isOn}
      disabled={flip.isPending}
      aria-label={`Jobs may use ${name}`}
      onChange={({ currentTarget }) => flip.mutate(currentTarget.checked)}
    />
  );
}
