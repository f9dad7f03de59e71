import { Grid, Group, Paper, Stack, Tabs, Text, Title } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { useQuery } from '@tanstack/react-query';
import { useParams } from 'react-router';

import { KeyList } from '../apiKeys/KeyList';
import { NewKey } from '../apiKeys/NewKey';
import { LatestJobs } from '../jobs/LatestJobs';
import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { Facts } from '../parts/Facts';
import { formatCost, formatCount } from '../parts/format';
import { Id } from '../parts/Id';
import { Page } from '../parts/Page';
import { State } from '../parts/State';
import { useFilters } from '../parts/useFilters';
import { AccountForm } from './AccountForm';
import { DangerZone } from './DangerZone';
import { type UserDetails, userQuery } from './queries';

const TABS = ['account', 'keys', 'jobs'] as const;

export function UserPage() {
  const { id = '' } = useParams();
  const user = useQuery(userQuery(id));
  const [{ tab }, setFilter] = useFilters('tab');
  const shown = TABS.find((known) => known === tab) ?? 'account';
  return (
    <Page
      title={user.data?.email ?? 'User'}
      heading={
        <Text component="span" inherit style={{ overflowWrap: 'anywhere' }}>
          {user.data?.name ?? user.data?.email ?? 'User'}
        </Text>
      }
      description={user.data !== undefined && <Standing user={user.data} />}
      parent={{ to: '/users', label: 'Users' }}
    >
      <Answer query={user} loading={<Lines count={4} height={90} />}>
        {(user) => (
          <Tabs value={shown} onChange={(tab) => setFilter('tab', tab === 'account' ? null : tab)} keepMounted={false}>
            <Tabs.List mb="lg">
              <Tabs.Tab value="account">Account</Tabs.Tab>
              <Tabs.Tab value="keys">API keys</Tabs.Tab>
              <Tabs.Tab value="jobs">Jobs</Tabs.Tab>
            </Tabs.List>
            <Tabs.Panel value="account">
              <Account user={user} />
            </Tabs.Panel>
            <Tabs.Panel value="keys">
              <Keys userId={user.id} />
            </Tabs.Panel>
            <Tabs.Panel value="jobs">
              <LatestJobs filter={{ user_id: user.id }} />
            </Tabs.Panel>
          </Tabs>
        )}
      </Answer>
    </Page>
  );
}

function Standing({ user }: { user: UserDetails }) {
  return (
    <Group gap="xs">
      {user.name != null && <span>{user.email}</span>}
      <State is={user.role} />
      {user.disabled && <State is="disabled" />}
    </Group>
  );
}

function Keys({ userId }: { userId: string }) {
  const newKey = useDisclosure();
  return (
    <Stack>
      <Group justify="flex-end">
        <NewKey userId={userId} dialog={newKey} />
      </Group>
      <KeyList userId={userId} make={newKey[1].open} />
    </Stack>
  );
}

function Account({ user }: { user: UserDetails }) {
  return (
    <Grid gap="lg">
      <Grid.Col span={{ base: 12, md: 7 }}>
        <Stack>
          <Paper p="lg">
            <AccountForm user={user} />
          </Paper>
          <DangerZone user={user} />
        </Stack>
      </Grid.Col>
      <Grid.Col span={{ base: 12, md: 5 }}>
        <Paper p="lg">
          <Title order={2} size="h5" mb="md">
            At a glance
          </Title>
          <Facts
            facts={[
              ['Id', <Id key="id" id={user.id} />],
              ['Spent today', formatCost(user.spent_today_usd)],
              ['Running jobs', formatCount(user.running_jobs)],
              ['Keys that work', formatCount(user.api_keys)],
              ['Made', <Ago key="made" at={user.created_at} />],
              ['Last login', user.last_login_at == null ? 'never' : <Ago key="login" at={user.last_login_at} />],
            ]}
          />
        </Paper>
      </Grid.Col>
    </Grid>
  );
}
