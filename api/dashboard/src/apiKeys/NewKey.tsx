import {
  Alert,
  Button,
  Checkbox,
  Code,
  CopyButton,
  Group,
  Modal,
  NumberInput,
  SimpleGrid,
  Stack,
  TagsInput,
  Text,
  TextInput,
} from '@mantine/core';
import { useForm } from '@mantine/form';
import type { UseDisclosureReturnValue } from '@mantine/hooks';
import { IconAlertTriangle, IconCheck, IconCopy, IconPlus } from '@tabler/icons-react';
import { useMutation } from '@tanstack/react-query';

import { Failure } from '../parts/Failure';
import { createKey, type Scope } from './queries';

interface NewKeyProps {
  userId: string;
  /** Whether it is open: a list without keys opens it as well, and is gone once there is one. */
  dialog: UseDisclosureReturnValue;
}

export function NewKey({ userId, dialog: [isOpen, { open, close }] }: NewKeyProps) {
  const create = useMutation({ mutationFn: createKey.bind(null, userId) });
  const made = create.data;
  // It is shown once: neither Escape nor a click beside the dialog takes it away.
  const isKept = create.isPending || made !== undefined;
  const shut = () => {
    if (create.isPending) return;
    close();
    create.reset();
  };
  return (
    <>
      <NewKeyButton onClick={open} />
      <Modal
        opened={isOpen}
        onClose={shut}
        title={made === undefined ? 'New API key' : 'Your new key'}
        size="lg"
        closeOnClickOutside={!isKept}
        closeOnEscape={!isKept}
        closeButtonProps={{ 'aria-label': 'Close', disabled: create.isPending }}
      >
        {made === undefined ? (
          <KeyForm create={create} cancel={shut} />
        ) : (
          <Shown secret={made.key} name={made.api_key.name} done={shut} />
        )}
      </Modal>
    </>
  );
}

export function NewKeyButton({ onClick }: { onClick: () => void }) {
  return (
    <Button leftSection={<IconPlus size={16} />} onClick={onClick}>
      New key
    </Button>
  );
}

interface KeyFormProps {
  create: {
    mutate: (body: Parameters<typeof createKey>[1]) => void;
    isPending: boolean;
    error: unknown;
  };
  cancel: () => void;
}

function KeyForm({ create, cancel }: KeyFormProps) {
  const form = useForm({
    initialValues: {
      name: '',
      scopes: ['chat', 'read'] as Scope[],
      expires: '',
      rate: '' as number | '',
      jobs: '' as number | '',
      hasTools: false,
      tools: [] as string[],
      addresses: [] as string[],
    },
    validate: {
      name: (name) => (name.trim() === '' ? 'Give it a name to know it again' : null),
      scopes: (scopes) => (scopes.length === 0 ? 'Choose at least one' : null),
      expires: (expires) => (expires !== '' && Date.parse(expires) <= Date.now() ? 'That is over already' : null),
    },
  });
  const submit = form.onSubmit(({ name, scopes, expires, rate, jobs, hasTools, tools, addresses }) =>
    create.mutate({
      name: name.trim(),
      scopes,
      ...(expires === '' ? {} : { expires_at: new Date(expires).toISOString() }),
      ...(rate === '' ? {} : { rate_limit_per_hour: rate }),
      ...(jobs === '' ? {} : { max_concurrent_jobs: jobs }),
      ...(hasTools ? { allowed_tools: tools } : {}),
      ...(addresses.length === 0 ? {} : { allowed_ips: addresses }),
    }),
  );
  return (
    <form onSubmit={submit} noValidate>
      <Stack>
        <TextInput label="Name" description="What you call it, such as where it is used." data-autofocus maxLength={100} {...form.getInputProps('name')} />
        <Checkbox.Group label="What it may be used for" {...form.getInputProps('scopes')}>
          <Group mt="xs" gap="lg">
            <Checkbox value="chat" label="Chat: send and cancel jobs" />
            <Checkbox value="read" label="Read: see jobs and usage" />
            <Checkbox value="admin" label="Admin: all of this dashboard" />
          </Group>
        </Checkbox.Group>
        <SimpleGrid cols={{ base: 1, xs: 3 }}>
          <TextInput label="Ends" type="datetime-local" {...form.getInputProps('expires')} />
          <NumberInput label="Requests in an hour" placeholder="As its owner" min={1} allowDecimal={false} {...form.getInputProps('rate')} />
          <NumberInput label="Jobs at a time" placeholder="As its owner" min={1} allowDecimal={false} {...form.getInputProps('jobs')} />
        </SimpleGrid>
        <Checkbox label="Only some tools" {...form.getInputProps('hasTools', { type: 'checkbox' })} />
        {form.values.hasTools && (
          <TagsInput label="The tools its jobs may use" description="None if it stays empty." placeholder="Read" {...form.getInputProps('tools')} />
        )}
        <TagsInput
          label="Where it may be used from"
          description="Addresses and networks such as 10.0.0.0/8; anywhere if it stays empty."
          {...form.getInputProps('addresses')}
        />
        {create.error !== null && <Failure error={create.error} />}
        <Group justify="flex-end">
          <Button variant="default" disabled={create.isPending} onClick={cancel}>
            Cancel
          </Button>
          <Button type="submit" loading={create.isPending}>
            Create the key
          </Button>
        </Group>
      </Stack>
    </form>
  );
}

function Shown({ secret, name, done }: { secret: string; name: string; done: () => void }) {
  return (
    <Stack>
      <Alert color="yellow" variant="outline" icon={<IconAlertTriangle />} title="It is shown this once">
        Copy <b>{name}</b> now and keep it where it is safe. Nobody can show it to you again.
      </Alert>
      <Code block className="said" fz="sm" data-testid="new-key">
        {secret}
      </Code>
      <Group justify="flex-end">
        <CopyButton value={secret}>
          {({ copied, copy }) => (
            <Button variant="default" leftSection={copied ? <IconCheck size={16} /> : <IconCopy size={16} />} onClick={copy} data-autofocus>
              {copied ? 'Copied' : 'Copy the key'}
            </Button>
          )}
        </CopyButton>
        <Button onClick={done}>Done</Button>
      </Group>
      <Text size="sm" c="dimmed">
        Programs send it as <Code>X-API-Key</Code>.
      </Text>
    </Stack>
  );
}
