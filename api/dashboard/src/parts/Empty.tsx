import { Paper, Stack, Text, Title } from '@mantine/core';
import type { Icon } from '@tabler/icons-react';
import type { ReactNode } from 'react';

interface EmptyProps {
  icon: Icon;
  title: string;
  children?: ReactNode;
  action?: ReactNode;
}

export function Empty({ icon: Sign, title, children, action }: EmptyProps) {
  return (
    <Paper p="xl">
      <Stack align="center" gap="xs" py="xl" ta="center">
        <Sign size={36} stroke={1.4} color="var(--mantine-color-dimmed)" aria-hidden />
        <Title order={2} size="h4">
          {title}
        </Title>
        {children !== undefined && (
          <Text c="dimmed" maw={460} component="div">
            {children}
          </Text>
        )}
        {action}
      </Stack>
    </Paper>
  );
}
