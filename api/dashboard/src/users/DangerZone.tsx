import { Button, Divider, Group, Modal, Paper, PasswordInput, Stack, Text, Title } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useDisclosure } from '@mantine/hooks';
import { useMutation } from '@tanstack/react-query';
import type { ReactNode } from 'react';
import { useNavigate } from 'react-router';

import { answered, client } from '../client/client';
import { useMe } from '../login/hooks';
import { ask } from '../parts/confirm';
import { Failure } from '../parts/Failure';
import { tellProblem, tellSuccess } from '../parts/notify';
import { updateUser } from './AccountForm';
import type { UserDetails } from './queries';

export function DangerZone({ user }: { user: UserDetails }) {
  const me = useMe();
  const isMe = user.id === me.id;
  return (
    <Paper p="lg">
      <Stack>
        <Title order={2} size="h5">
          Access
        </Title>
        <Row title="Password" what="Set another one. It ends all logins of the account.">
          <ResetPassword user={user} />
        </Row>
        <Divider />
        <Row title={user.disabled ? 'Enable' : 'Disable'} what={user.disabled ? 'The account and its keys work again.' : 'The account and its keys do nothing until they are enabled again.'}>
          <Disable user={user} isMe={isMe} />
        </Row>
        <Divider />
        <Row title="Delete" what="The account, its keys, its sessions and their files. This cannot be undone.">
          <Delete user={user} isMe={isMe} />
        </Row>
      </Stack>
    </Paper>
  );
}

function Row({ title, what, children }: { title: string; what: string; children: ReactNode }) {
  return (
    <Group justify="space-between" wrap="nowrap" align="flex-start">
      <div>
        <Text size="sm" fw={600}>
          {title}
        </Text>
        <Text size="sm" c="dimmed">
          {what}
        </Text>
      </div>
      {children}
    </Group>
  );
}

function ResetPassword({ user }: { user: UserDetails }) {
  const [isOpen, { open, close }] = useDisclosure();
  const form = useForm({
    initialValues: { password: '' },
    validate: { password: (password) => (password.length < 12 ? 'At least 12 characters' : null) },
  });
  const reset = useMutation({
    mutationFn: (password: string) => updateUser(user.id, { password }),
    onSuccess: () => {
      tellSuccess('The account has a new password.');
      shut();
    },
  });
  const shut = () => {
    close();
    form.reset();
    reset.reset();
  };
  return (
    <>
      <Button variant="default" size="xs" flex="none" onClick={open}>
        Set a password
      </Button>
      <Modal opened={isOpen} onClose={shut} title={`A new password for ${user.email}`} closeButtonProps={{ 'aria-label': 'Close' }}>
        <form onSubmit={form.onSubmit(({ password }) => reset.mutate(password))} noValidate>
          <Stack>
            <PasswordInput label="New password" autoComplete="new-password" data-autofocus {...form.getInputProps('password')} />
            {reset.isError && <Failure error={reset.error} />}
            <Group justify="flex-end">
              <Button variant="default" onClick={shut}>
                Cancel
              </Button>
              <Button type="submit" loading={reset.isPending}>
                Set it
              </Button>
            </Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}

function Disable({ user, isMe }: { user: UserDetails; isMe: boolean }) {
  const change = useMutation({
    mutationFn: (disabled: boolean) => updateUser(user.id, { disabled }),
    onSuccess: ({ disabled }) => tellSuccess(`The account is ${disabled ? 'disabled' : 'enabled'}.`),
    onError: tellProblem,
  });
  if (user.disabled) {
    return (
      <Button variant="default" size="xs" flex="none" loading={change.isPending} onClick={() => change.mutate(false)}>
        Enable
      </Button>
    );
  }
  return (
    <Button
      variant="default"
      size="xs"
      flex="none"
      disabled={isMe}
      loading={change.isPending}
      onClick={() =>
        ask({
          title: `Disable ${user.email}?`,
          children: 'Its logins and sockets end now, and its keys are refused until it is enabled again.',
          confirm: 'Disable',
          act: () => change.mutate(true),
        })
      }
    >
      Disable
    </Button>
  );
}

function Delete({ user, isMe }: { user: UserDetails; isMe: boolean }) {
  const navigate = useNavigate();
  const remove = useMutation({
    mutationFn: () => answered(client.DELETE('/api/admin/users/{id}', { params: { path: { id: user.id } } })),
    meta: { gone: ['users', user.id] },
    onSuccess: () => {
      tellSuccess(`${user.email} is deleted.`);
      void navigate('/users');
    },
    onError: tellProblem,
  });
  return (
    <Button
      color="red.8"
      size="xs"
      flex="none"
      disabled={isMe}
      loading={remove.isPending}
      onClick={() =>
        ask({
          title: `Delete ${user.email}?`,
          children: 'Its jobs are cancelled; its keys, sessions and files are removed. This cannot be undone.',
          confirm: 'Delete for good',
          act: () => remove.mutate(),
        })
      }
    >
      Delete
    </Button>
  );
}
