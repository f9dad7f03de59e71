import { Group, Paper, Text } from '@mantine/core';
import type { Icon } from '@tabler/icons-react';
import type { ReactNode } from 'react';

interface StatProps {
  label: string;
  value: ReactNode;
  hint?: ReactNode;
  icon?: Icon;
  children?: ReactNode;
}

export function Stat({ label, value, hint, icon: Sign, children }: StatProps) {
  return (
    <Paper p="md" h="100%" role="group" aria-label={label}>
      <Group justify="space-between" wrap="nowrap" gap="xs">
        <Text size="sm" c="dimmed" fw={500}>
          {label}
        </Text>
        {Sign !== undefined && <Sign size={18} stroke={1.5} color="var(--mantine-color-dimmed)" aria-hidden />}
      </Group>
      <Text component="div" fz={26} fw={650} lh={1.25} mt={4} className="numbers">
        {value}
      </Text>
      {hint !== undefined && (
        <Text component="div" size="sm" c="dimmed" className="numbers">
          {hint}
        </Text>
      )}
      {children}
    </Paper>
  );
}
