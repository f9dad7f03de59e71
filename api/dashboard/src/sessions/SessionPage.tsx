import { Button, Code, Grid, Group, Paper, Stack, Tabs, Text, Title } from '@mantine/core';
import { IconLock, IconTrash } from '@tabler/icons-react';
import { useMutation, useQuery } from '@tanstack/react-query';
import { useNavigate, useParams } from 'react-router';

import { LatestJobs } from '../jobs/LatestJobs';
import { useMe } from '../login/hooks';
import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { ask } from '../parts/confirm';
import { Empty } from '../parts/Empty';
import { Facts } from '../parts/Facts';
import { formatBytes, formatCost, formatCount } from '../parts/format';
import { Id } from '../parts/Id';
import { tellProblem, tellSuccess } from '../parts/notify';
import { Page } from '../parts/Page';
import { State } from '../parts/State';
import { useFilters } from '../parts/useFilters';
import { UserLink } from '../users/UserLink';
import { Files } from './Files';
import { Messages } from './Messages';
import { deleteSession, sessionQuery, type UserSession } from './queries';

const TABS = ['messages', 'files', 'jobs'] as const;

export function SessionPage() {
  const { id = '' } = useParams();
  // Each tab has a list of its own: the place in one, which the address has as well, is none in another.
  const [{ tab }, setFilter] = useFilters('tab');
  const shown = TABS.find((known) => known === tab) ?? 'messages';
  const session = useQuery(sessionQuery(id));
  const me = useMe();
  const title = session.data?.title ?? 'Untitled session';
  return (
    <Page
      title={session.data === undefined ? 'Session' : title}
      parent={{ to: '/sessions', label: 'Sessions' }}
      description={<Id id={id} whole />}
      actions={session.data !== undefined && <Delete session={session.data} />}
    >
      <Answer query={session} loading={<Lines count={4} height={90} />}>
        {(session) => (
          <Grid gap="lg">
            <Grid.Col span={{ base: 12, lg: 8 }}>
              <Tabs value={shown} onChange={(tab) => setFilter('tab', tab === 'messages' ? null : tab)} keepMounted={false}>
                <Tabs.List mb="lg">
                  <Tabs.Tab value="messages">Messages</Tabs.Tab>
                  <Tabs.Tab value="files">Files</Tabs.Tab>
                  <Tabs.Tab value="jobs">Jobs</Tabs.Tab>
                </Tabs.List>
                <Tabs.Panel value="messages">
                  <Messages sessionId={session.id} />
                </Tabs.Panel>
                <Tabs.Panel value="files">
                  {session.user_id === me.id ? (
                    <Files sessionId={session.id} />
                  ) : (
                    <Empty icon={IconLock} title="Only for their owner">
                      What is in the workspace of a session can be read by whose session it is, and by nobody else.
                    </Empty>
                  )}
                </Tabs.Panel>
                <Tabs.Panel value="jobs">
                  <LatestJobs filter={{ session_id: session.id }} />
                </Tabs.Panel>
              </Tabs>
            </Grid.Col>
            <Grid.Col span={{ base: 12, lg: 4 }}>
              <About session={session} />
            </Grid.Col>
          </Grid>
        )}
      </Answer>
    </Page>
  );
}

function About({ session }: { session: UserSession }) {
  const names = (list: string[] | null | undefined) => (list == null ? 'no bound' : list.length === 0 ? 'none' : list.join(', '));
  return (
    <Stack>
      <Paper p="lg">
        <Group justify="space-between" mb="md">
          <Title order={2} size="h5">
            About
          </Title>
          {session.archived && <State is="archived" />}
        </Group>
        <Facts
          facts={[
            ['User', <UserLink key="user" id={session.user_id} />],
            ['Turns', formatCount(session.turns)],
            ['Jobs', formatCount(session.jobs)],
            ['Running', formatCount(session.active_jobs)],
            ['Cost', formatCost(session.cost_usd)],
            ['Tokens written', formatCount(session.usage.output_tokens)],
            ['Transcript', formatBytes(session.transcript_bytes)],
            ['Files', `${formatCount(session.files)} · ${formatBytes(session.workspace_bytes)}`],
            ['Model', session.model ?? 'the server’s default'],
            ['Tools', names(session.tools)],
            ['MCP servers', names(session.mcp_servers)],
            ['Made', <Ago key="made" at={session.created_at} />],
            ['Last used', session.last_activity_at == null ? 'never' : <Ago key="used" at={session.last_activity_at} />],
          ]}
        />
      </Paper>
      {session.system_prompt != null && (
        <Paper p="lg">
          <Title order={2} size="h5" mb="md">
            System prompt
          </Title>
          <Code block className="said" mah={300}>
            {session.system_prompt}
          </Code>
        </Paper>
      )}
    </Stack>
  );
}

function Delete({ session }: { session: UserSession }) {
  const navigate = useNavigate();
  const remove = useMutation({
    mutationFn: () => deleteSession(session.id),
    meta: { gone: ['sessions', session.id] },
    onSuccess: () => {
      tellSuccess('The session is deleted.');
      void navigate('/sessions');
    },
    onError: tellProblem,
  });
  return (
    <Button
      color="red.8"
      leftSection={<IconTrash size={16} />}
      loading={remove.isPending}
      onClick={() =>
        ask({
          title: 'Delete this session?',
          children: (
            <Text size="sm">What was said in it and its files are removed, and its running jobs are cancelled. This cannot be undone.</Text>
          ),
          confirm: 'Delete for good',
          act: () => remove.mutate(),
        })
      }
    >
      Delete
    </Button>
  );
}
