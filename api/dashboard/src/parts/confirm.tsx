import { Text } from '@mantine/core';
import { modals } from '@mantine/modals';
import type { ReactNode } from 'react';

interface Question {
  title: string;
  children: ReactNode;
  confirm: string;
  isDangerous?: boolean;
  act: () => void;
}

export function ask({ title, children, confirm, isDangerous = true, act }: Question): void {
  modals.openConfirmModal({
    title,
    children: (
      <Text size="sm" component="div">
        {children}
      </Text>
    ),
    labels: { confirm, cancel: 'Cancel' },
    confirmProps: isDangerous ? { color: 'red.8' } : {},
    closeButtonProps: { 'aria-label': 'Close' },
    onConfirm: act,
  });
}
