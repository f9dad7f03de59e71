import { Badge, Button, Code, Group, Text } from '@mantine/core';
import { IconKey } from '@tabler/icons-react';
import { useMutation, useQuery } from '@tanstack/react-query';

import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { ask } from '../parts/confirm';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { formatCount } from '../parts/format';
import { tellProblem, tellSuccess } from '../parts/notify';
import { Pager } from '../parts/Pager';
import { State } from '../parts/State';
import { useCursor } from '../parts/useCursor';
import { NewKeyButton } from './NewKey';
import { type ApiKey, keysQuery, revokeKey, stateOf } from './queries';

const COLUMNS: Column<ApiKey>[] = [
  {
    label: 'Key',
    cell: ({ name, prefix }) => (
      <>
        <Text size="sm" fw={600} style={{ overflowWrap: 'anywhere' }}>
          {name}
        </Text>
        <Code>{prefix}…</Code>
      </>
    ),
  },
  { label: 'State', cell: (key) => <State is={stateOf(key, Date.now())} /> },
  {
    label: 'For',
    cell: ({ scopes }) => (
      <Group gap={4}>
        {scopes.map((scope) => (
          <Badge key={scope} variant="default" size="sm" tt="none">
            {scope}
          </Badge>
        ))}
      </Group>
    ),
  },
  { label: 'Bounds', cell: (key) => <Bounds apiKey={key} /> },
  { label: 'Last used', cell: ({ last_used_at }) => (last_used_at == null ? 'never' : <Ago at={last_used_at} />) },
  { label: 'Made', cell: ({ created_at }) => <Ago at={created_at} /> },
  { label: 'Revoke', isAction: true, cell: (key) => <Revoke apiKey={key} /> },
];

/** Somebody's keys; where there are none, a way to make one. */
export function KeyList({ userId, make }: { userId: string; make: () => void }) {
  const at = useCursor();
  const keys = useQuery(keysQuery(userId, { cursor: at.cursor }));
  return (
    <Answer query={keys} loading={<Lines count={4} height={56} />}>
      {({ data, next_cursor }) =>
        data.length === 0 ? (
          <Empty icon={IconKey} title="No keys" action={<NewKeyButton onClick={make} />}>
            A key lets a program use the API in somebody’s name.
          </Empty>
        ) : (
          <>
            <DataTable caption="API keys" columns={COLUMNS} rows={data} keyOf={({ id }) => id} minWidth={860} />
            <Pager at={at} next={next_cursor} />
          </>
        )
      }
    </Answer>
  );
}

function Bounds({ apiKey }: { apiKey: ApiKey }) {
  const bounds = [
    apiKey.rate_limit_per_hour != null && `${formatCount(apiKey.rate_limit_per_hour)} requests/h`,
    apiKey.max_concurrent_jobs != null && `${formatCount(apiKey.max_concurrent_jobs)} jobs at a time`,
    apiKey.allowed_tools != null && (apiKey.allowed_tools.length === 0 ? 'no tools' : `tools ${apiKey.allowed_tools.join(', ')}`),
    apiKey.allowed_ips != null && `from ${apiKey.allowed_ips.join(', ')}`,
  ].filter((bound) => bound !== false);
  return (
    <Text size="sm" c="dimmed" maw={240} component="div" style={{ overflowWrap: 'anywhere' }}>
      {bounds.length === 0 && apiKey.expires_at == null ? 'those of its owner' : bounds.map((bound) => <div key={bound}>{bound}</div>)}
      {apiKey.expires_at != null && (
        <div>
          ends <Ago at={apiKey.expires_at} />
        </div>
      )}
    </Text>
  );
}

function Revoke({ apiKey }: { apiKey: ApiKey }) {
  const revoke = useMutation({
    mutationFn: () => revokeKey(apiKey.id),
    onSuccess: () => tellSuccess(`The key ${apiKey.name} works no more.`),
    onError: tellProblem,
  });
  if (apiKey.revoked_at != null) return null;
  return (
    <Button
      size="xs"
      variant="default"
      loading={revoke.isPending}
      aria-label={`Revoke ${apiKey.name}`}
      onClick={() =>
        ask({
          title: `Revoke ${apiKey.name}?`,
          children: 'Whatever uses this key is refused from now on. This cannot be undone.',
          confirm: 'Revoke the key',
          act: () => revoke.mutate(),
        })
      }
    >
      Revoke
    </Button>
  );
}
