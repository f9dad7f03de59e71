import { Alert, Anchor, Button, Center, Paper, PasswordInput, Stack, Text, TextInput, Title } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useState } from 'react';

import { Problem } from '../client/problem';
import { useTitle } from '../parts/useTitle';
import { login, type WhyOut } from './login';

export function LoginPage({ because }: { because: WhyOut }) {
  useTitle('Log in');
  const [problem, setProblem] = useState<Problem | null>(null);
  const form = useForm({
    mode: 'uncontrolled',
    initialValues: { email: '', password: '' },
    validate: {
      email: (email) => (email.includes('@') ? null : 'Give the address of your account'),
      password: (password) => (password === '' ? 'Give your password' : null),
    },
  });
  const submit = form.onSubmit(async ({ email, password }) => {
    setProblem(null);
    try {
      await login.begin(email, password);
    } catch (error) {
      setProblem(Problem.from(error));
      form.getInputNode('password')?.focus();
    }
  });

  return (
    <Center component="main" mih="100dvh" p="md">
      <Stack w="100%" maw={400} gap="lg">
        <Stack align="center" gap={6}>
          <img src="/admin/favicon.svg" alt="" width={44} height={44} />
          <Title order={1} size="h2" mt="xs">
            Claude API
          </Title>
          <Text c="dimmed">Log in to the dashboard</Text>
        </Stack>
        <Paper p="xl" shadow="sm">
          <form onSubmit={submit} noValidate>
            <Stack>
              {problem !== null ? (
                <Alert color="red" role="alert" title={TITLES[problem.code] ?? 'That did not work'}>
                  {problem.detail}
                </Alert>
              ) : (
                because !== null && <Alert color="yellow">{REASONS[because]}</Alert>
              )}
              <TextInput
                label="Email"
                type="email"
                autoComplete="username"
                data-autofocus
                autoFocus
                key={form.key('email')}
                {...form.getInputProps('email')}
              />
              <PasswordInput
                label="Password"
                autoComplete="current-password"
                key={form.key('password')}
                {...form.getInputProps('password')}
              />
              <Button type="submit" loading={form.submitting} fullWidth mt="xs">
                Log in
              </Button>
            </Stack>
          </form>
        </Paper>
        <Text size="sm" c="dimmed" ta="center">
          For admins of this service. The API itself is described in its <Anchor href="/docs" underline="always">reference</Anchor>.
        </Text>
      </Stack>
    </Center>
  );
}

const REASONS: Record<NonNullable<WhyOut>, string> = {
  expired: 'Your login has ended. Log in again to go on where you were.',
  copied: 'The tab that this one is a copy of goes on with your login. Log in to use both.',
};

const TITLES: Record<string, string> = {
  invalid_login: 'Wrong address or password',
  account_disabled: 'This account is disabled',
  rate_limited: 'Too many attempts',
  unreachable: 'No answer',
};
