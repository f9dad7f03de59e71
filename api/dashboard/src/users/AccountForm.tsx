import { Button, Group, Stack, TextInput, Title } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useMutation } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';
import { useMe } from '../login/hooks';
import { login } from '../login/login';
import { Failure } from '../parts/Failure';
import { tellSuccess } from '../parts/notify';
import { emailFault, nameOf, RoleInput } from './account';
import { bodyOf, LimitInputs, limitsOf } from './limits';
import type { UserDetails } from './queries';

export function updateUser(id: string, body: Schema<'UpdateUser'>): Promise<UserDetails> {
  return answered(client.PATCH('/api/admin/users/{id}', { params: { path: { id } }, body }));
}

export function AccountForm({ user }: { user: UserDetails }) {
  const me = useMe();
  const form = useForm({
    initialValues: { email: user.email, name: user.name ?? '', role: user.role, ...limitsOf(user) },
    validate: { email: emailFault },
  });
  const save = useMutation({
    mutationFn: (body: Schema<'UpdateUser'>) => updateUser(user.id, body),
    onSuccess: (changed) => {
      tellSuccess('The account is changed.');
      if (changed.id === me.id) login.changed(changed);
    },
  });
  const submit = form.onSubmit(({ email, name, role, ...limits }) =>
    save.mutate({ email, role, name: nameOf(name), ...bodyOf(limits) }),
  );
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
