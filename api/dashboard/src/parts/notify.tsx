import { notifications } from '@mantine/notifications';
import { IconAlertTriangle, IconCheck } from '@tabler/icons-react';
import type { ReactNode } from 'react';

import { Problem } from '../client/problem';

export function tellSuccess(message: ReactNode): void {
  notifications.show({
    message,
    color: 'green.8',
    icon: <IconCheck size={18} />,
    closeButtonProps: { 'aria-label': 'Close' },
  });
}

export function tellProblem(error: unknown): void {
  const problem = Problem.from(error);
  const where = problem.requestId === null ? '' : ` (request ${problem.requestId})`;
  notifications.show({
    title: 'That did not work',
    message: `${problem.detail}${where}`,
    color: 'red.8',
    icon: <IconAlertTriangle size={18} />,
    autoClose: 10_000,
    closeButtonProps: { 'aria-label': 'Close' },
  });
}
