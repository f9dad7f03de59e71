import { Anchor, Group, Text } from '@mantine/core';
import { IconMessages } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { Link } from 'react-router';

import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { formatBytes, formatCost, formatCount } from '../parts/format';
import { Id } from '../parts/Id';
import { Page } from '../parts/Page';
import { Pager } from '../parts/Pager';
import { State } from '../parts/State';
import { useCursor } from '../parts/useCursor';
import { useFilters } from '../parts/useFilters';
import { UserLink } from '../users/UserLink';
import { UserSelect } from '../users/UserSelect';
import { sessionsQuery, type UserSession } from './queries';

const COLUMNS: Column<UserSession>[] = [
  {
    label: 'Session',
    cell: ({ id, title, archived }) => (
      <>
        <Group gap="xs">
          <Anchor component={Link} to={`/sessions/${id}`} size="sm" fw={600} style={{ overflowWrap: 'anywhere' }}>
            {title ?? 'Untitled'}
          </Anchor>
          {archived && <State is="archived" />}
        </Group>
        <Id id={id} />
      </>
    ),
  },
  { label: 'User', cell: ({ user_id }) => <UserLink id={user_id} /> },
  { label: 'Turns', isFigure: true, cell: ({ turns }) => formatCount(turns) },
  { label: 'Running', isFigure: true, cell: ({ active_jobs }) => formatCount(active_jobs) },
  {
    label: 'Files',
    isFigure: true,
    cell: ({ files, workspace_bytes }) => (
      <>
        {formatCount(files)}
        {files > 0 && (
          <Text component="span" size="sm" c="dimmed">
            {' '}
            · {formatBytes(workspace_bytes)}
          </Text>
        )}
      </>
    ),
  },
  { label: 'Cost', isFigure: true, cell: ({ cost_usd }) => formatCost(cost_usd) },
  { label: 'Last used', cell: ({ last_activity_at, created_at }) => <Ago at={last_activity_at ?? created_at} /> },
];

export function SessionsPage() {
  const [filters, setFilter] = useFilters('user');
  const at = useCursor();
  const sessions = useQuery(sessionsQuery({ user_id: filters.user, cursor: at.cursor }));
  return (
    <Page title="Sessions" description="Everybody’s conversations, and the files beside them.">
      <Group>
        <UserSelect label="User" value={filters.user ?? null} onChange={(id) => setFilter('user', id)} />
      </Group>
      <Answer query={sessions} loading={<Lines count={8} height={52} />}>
        {({ data, next_cursor }) =>
          data.length === 0 ? (
            <Empty icon={IconMessages} title="No sessions">
              A session keeps what several jobs say one after the other. The playground can begin one.
            </Empty>
          ) : (
            <>
              <DataTable caption="Sessions" columns={COLUMNS} rows={data} keyOf={({ id }) => id} minWidth={860} />
              <Pager at={at} next={next_cursor} />
            </>
          )
        }
      </Answer>
    </Page>
  );
}
