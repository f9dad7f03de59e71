import { Anchor, Group, Text, TextInput } from '@mantine/core';
import { IconSearch, IconUsers } from '@tabler/icons-react';
import { keepPreviousData, useQuery } from '@tanstack/react-query';
import { Link } from 'react-router';

import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { formatCost, formatCount } from '../parts/format';
import { Page } from '../parts/Page';
import { Pager } from '../parts/Pager';
import { State } from '../parts/State';
import { useCursor } from '../parts/useCursor';
import { useFilters } from '../parts/useFilters';
import { useTyped } from '../parts/useTyped';
import { NewUser } from './NewUser';
import { type UserDetails, usersQuery } from './queries';

const COLUMNS: Column<UserDetails>[] = [
  {
    label: 'User',
    cell: ({ id, email, name }) => (
      <>
        <Anchor component={Link} to={`/users/${id}`} size="sm" fw={600} style={{ overflowWrap: 'anywhere' }}>
          {email}
        </Anchor>
        {name != null && (
          <Text size="sm" c="dimmed">
            {name}
          </Text>
        )}
      </>
    ),
  },
  {
    label: 'Role',
    cell: ({ role, disabled }) => (
      <Group gap={6}>
        <State is={role} />
        {disabled && <State is="disabled" />}
      </Group>
    ),
  },
  { label: 'Keys', isFigure: true, isMinor: true, cell: ({ api_keys }) => formatCount(api_keys) },
  { label: 'Running jobs', isFigure: true, isMinor: true, cell: ({ running_jobs }) => formatCount(running_jobs) },
  {
    label: 'Spent today',
    isFigure: true,
    cell: ({ spent_today_usd, daily_budget_usd }) =>
      daily_budget_usd == null ? formatCost(spent_today_usd) : `${formatCost(spent_today_usd)} of ${formatCost(daily_budget_usd)}`,
  },
  { label: 'Last login', cell: ({ last_login_at }) => (last_login_at == null ? 'never' : <Ago at={last_login_at} />) },
];

export function UsersPage() {
  const [{ query }, setFilter] = useFilters('query');
  const [typed, type] = useTyped(query ?? '', (query) => setFilter('query', query));
  const at = useCursor();
  const users = useQuery({
    ...usersQuery({ cursor: at.cursor, query }),
    placeholderData: keepPreviousData,
  });
  return (
    <Page title="Users" description="The accounts of this service." actions={<NewUser />}>
      <Group>
        <TextInput
          aria-label="Search the users"
          placeholder="Search by address or name"
          leftSection={<IconSearch size={16} />}
          value={typed}
          onChange={({ currentTarget }) => type(currentTarget.value)}
          w={{ base: '100%', xs: 300 }}
        />
      </Group>
      <Answer query={users} loading={<Lines count={8} height={52} />}>
        {({ data, next_cursor }) =>
          data.length === 0 ? (
            <Empty icon={IconUsers} title="Nobody found">
              No account has this in its address or name.
            </Empty>
          ) : (
            <>
              <DataTable caption="Users" columns={COLUMNS} rows={data} keyOf={({ id }) => id} minWidth={760} />
              <Pager at={at} next={next_cursor} />
            </>
          )
        }
      </Answer>
    </Page>
  );
}
