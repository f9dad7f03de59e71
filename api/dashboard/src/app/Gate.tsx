import { Button, Center, Group, Stack, Text, Title } from '@mantine/core';
import { ModalsProvider } from '@mantine/modals';
import { Notifications } from '@mantine/notifications';
import { IconLock } from '@tabler/icons-react';
import { useQueryClient } from '@tanstack/react-query';
import { useEffect } from 'react';

import { LoginPage } from '../login/LoginPage';
import { Me, useLogin } from '../login/hooks';
import { login } from '../login/login';
import { Failure } from '../parts/Failure';
import { useTitle } from '../parts/useTitle';
import { Loading } from './Places';
import { Shell } from './Shell';

/** What every place has around it, within the router: what is told and asked has links in it. */
export function Gate() {
  return (
    <ModalsProvider>
      <Notifications position="bottom-right" limit={4} />
      <Inside />
    </ModalsProvider>
  );
}

/** Lets admins in. Everybody else is told what they need. */
function Inside() {
  const state = useLogin();
  const queries = useQueryClient();
  useEffect(() => {
    // What one saw is not for the next one at this screen.
    if (state.is === 'out') queries.clear();
  }, [state.is, queries]);

  switch (state.is) {
    case 'restoring':
      return <Loading />;
    case 'unreachable':
      return (
        <Center component="main" mih="100dvh" p="md">
          <Failure error={state.problem} retry={() => void login.restore()} />
        </Center>
      );
    case 'out':
      return <LoginPage because={state.because} />;
    case 'in':
      return state.user.role === 'admin' ? (
        <Me value={state.user}>
          <Shell />
        </Me>
      ) : (
        <NotForYou email={state.user.email} />
      );
  }
}

function NotForYou({ email }: { email: string }) {
  useTitle('Admins only');
  return (
    <Center component="main" mih="100dvh" p="md">
      <Stack align="center" maw={440} ta="center">
        <IconLock size={40} stroke={1.5} aria-hidden />
        <Title order={1} size="h2">
          This dashboard is for admins
        </Title>
        <Text c="dimmed">
          You are logged in as <b>{email}</b>, whose role is <b>user</b>. Ask an admin of this service for the role, or use the API with
          a key.
        </Text>
        <Group>
          <Button onClick={() => void login.end()}>Log in as somebody else</Button>
          <Button component="a" href="/docs" variant="default">
            API reference
          </Button>
        </Group>
      </Stack>
    </Center>
  );
}
