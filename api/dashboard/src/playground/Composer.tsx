import { ActionIcon, Group, Kbd, Paper, Stack, Text, Textarea } from '@mantine/core';
import { IconArrowUp } from '@tabler/icons-react';
import { useMutation } from '@tanstack/react-query';
import { useState } from 'react';

import { Failure } from '../parts/Failure';
import classes from './Composer.module.css';

interface ComposerProps {
  isBusy: boolean;
  send: (message: string) => Promise<void>;
}

export function Composer({ isBusy, send }: ComposerProps) {
  const [message, setMessage] = useState('');
  const sending = useMutation({ mutationFn: send, onSuccess: () => setMessage('') });
  const isReady = message.trim() !== '' && !isBusy && !sending.isPending;
  const submit = () => {
    if (isReady) sending.mutate(message);
  };
  return (
    <Stack gap="sm">
      {sending.isError && <Failure error={sending.error} />}
      <Paper p="sm" component="form" className={classes.composer} onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}>
        <Textarea
          variant="unstyled"
          aria-label="Message"
          placeholder="Your message"
          minRows={2}
          maxRows={12}
          px="xs"
          value={message}
          onChange={({ currentTarget }) => setMessage(currentTarget.value)}
          onKeyDown={(event) => {
            // A key that ends the choice of a character sends nothing.
            if (event.key !== 'Enter' || event.shiftKey || event.nativeEvent.isComposing) return;
            event.preventDefault();
            submit();
          }}
        />
        <Group justify="space-between" mt={4}>
          <Text size="xs" c="dimmed" px="xs" visibleFrom="xs">
            <Kbd size="xs">Enter</Kbd> sends, <Kbd size="xs">Shift</Kbd> + <Kbd size="xs">Enter</Kbd> makes a line
          </Text>
          <ActionIcon ml="auto" type="submit" size="lg" radius="xl" variant="filled" aria-label="Send" disabled={!isReady} loading={sending.isPending}>
            <IconArrowUp size={18} />
          </ActionIcon>
        </Group>
      </Paper>
    </Stack>
  );
}
