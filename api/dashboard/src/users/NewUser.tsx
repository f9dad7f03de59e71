import { Button, Group, Modal, PasswordInput, Stack, TextInput } from '@mantine/core';
import { useForm } from '@mantine/form';
import { useDisclosure } from '@mantine/hooks';
import { IconPlus } from '@tabler/icons-react';
import { useMutation } from '@tanstack/react-query';
import { useNavigate } from 'react-router';

import { answered, client, type Schema } from '../client/client';
import { Failure } from '../parts/Failure';
import { tellSuccess } from '../parts/notify';
import { emailFault, nameOf, RoleInput } from './account';
import { bodyOf, LimitInputs, NO_LIMITS } from './limits';

export function NewUser() {
  const [isOpen, { open, close }] = useDisclosure();
  return (
    <>
      <Button leftSection={<IconPlus size={16} />} onClick={open}>
        New user
      </Button>
      <Modal opened={isOpen} onClose={close} title="New user" size="lg" closeButtonProps={{ 'aria-label': 'Close' }}>
        <NewUserForm close={close} />
      </Modal>
    </>
  );
}

function NewUserForm({ close }: { close: () => void }) {
  const navigate = useNavigate();
  const create = useMutation({
    mutationFn: (body: Schema<'CreateUser'>) => answered(client.POST('/api/admin/users', { body })),
    onSuccess: ({ id, email }) => {
      tellSuccess(`${email} has an account.`);
      close();
      void navigate(`/users/${id}`);
    },
  });
  const form = useForm({
    initialValues: { email: '', name: '', password: '', role: 'user' as 'user' | 'admin', ...NO_LIMITS },
    validate: {
      email: emailFault,
      password: (password) => (password.length < 12 ? 'At least 12 characters' : null),
    },
  });
  const submit = form.onSubmit(({ email, name, password, role, ...limits }) =>
    create.mutate({ email, password, role, name: nameOf(name), ...bodyOf(limits) }),
  );
  return (
    <form onSubmit={submit} noValidate>
      <Stack>
        <TextInput label="Email" type="email" data-autofocus {...form.getInputProps('email')} />
        <TextInput label="Name" maxLength={100} {...form.getInputProps('name')} />
        <PasswordInput
          label="Password"
          description="To give to its owner, who should change it."
          autoComplete="new-password"
          {...form.getInputProps('password')}
        />
        <RoleInput form={form} labels={{ user: 'User: uses the API', admin: 'Admin: also this dashboard' }} />
        <LimitInputs form={form} />
        {create.isError && <Failure error={create.error} />}
        <Group justify="flex-end">
          <Button variant="default" onClick={close}>
            Cancel
          </Button>
          <Button type="submit" loading={create.isPending}>
            Create the user
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
