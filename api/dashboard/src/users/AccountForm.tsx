import { Button, Group, Stack, TextInput, Title } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useMutation } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';
import { useMe } from '../login/hooks';
import { login } from '../login/login';
import { ask } from '../parts/confirm';
import { Failure } from '../parts/Failure';
import { tellSuccess } from '../parts/notify';
import { changesOf, emailFault, nameOf, RoleInput } from './account';
import { bodyOf, LimitInputs, type Limits, limitsOf } from './limits';
import type { UserDetails } from './queries';

export function updateUser(id: string, body: Schema<'UpdateUser'>): Promise<UserDetails> {
  return answered(client.PATCH('/api/admin/users/{id}', { params: { path: { id } }, body }));
}

export function AccountForm({ user }: { user: UserDetails }) {
  const saved = { email: user.email, name: user.name ?? '', role: user.role, ...limitsOf(user) };
  // What was changed elsewhere is shown; what else happens to an account leaves alone what is being typed.
  return <AccountFields key={JSON.stringify([user.id, saved])} user={user} saved={saved} />;
}

interface Account extends Limits {
  email: string;
  name: string;
  role: UserDetails['role'];
}

function AccountFields({ user, saved }: { user: UserDetails; saved: Account }) {
  const me = useMe();
  const form = useForm({ initialValues: saved, validate: { email: emailFault } });
  const save = useMutation({
    mutationFn: (body: Schema<'UpdateUser'>) => updateUser(user.id, body),
    onSuccess: (changed) => {
      tellSuccess('The account is changed.');
      if (changed.id === me.id) login.changed(changed);
    },
  });
  const submit = form.onSubmit((account) => {
    const changes = changesOf(accountBodyOf(saved), accountBodyOf(account));
    if (changes.role === undefined) save.mutate(changes);
    else ask({ ...questionOf(user, changes.role, user.id === me.id), act: () => save.mutate(changes) });
  });
  return (
    <form onSubmit={submit} noValidate>
      <Stack>
        <Title order={2} size="h5">
          Account
        </Title>
        <TextInput label="Email" type="email" {...form.getInputProps('email')} />
        <TextInput label="Name" maxLength={100} {...form.getInputProps('name')} />
        <RoleInput form={form} labels={{ user: 'User', admin: 'Admin' }} />
        <Title order={2} size="h5" mt="sm">
          Limits
        </Title>
        <LimitInputs form={form} />
        {save.isError && <Failure error={save.error} />}
        <Group justify="flex-end">
          <Button variant="default" disabled={!form.isDirty()} onClick={form.reset}>
            Undo
          </Button>
          <Button type="submit" disabled={!form.isDirty()} loading={save.isPending}>
            Save
          </Button>
        </Group>
      </Stack>
    </form>
  );
}

function accountBodyOf({ email, name, role, ...limits }: Account) {
  return { email, name: nameOf(name), role, ...bodyOf(limits) };
}

function questionOf({ email }: UserDetails, role: Account['role'], isMe: boolean) {
  if (role === 'admin') {
    return {
      title: `Make ${email} an admin?`,
      children: 'An admin sees what everybody does, and may change and delete all accounts.',
      confirm: 'Make an admin',
    };
  }
  return {
    title: isMe ? 'Be an admin no longer?' : `Make ${email} a user?`,
    children: isMe ? 'This dashboard closes for you at once. Only another admin can open it again.' : 'They can use this dashboard no longer.',
    confirm: 'Make a user',
  };
}
