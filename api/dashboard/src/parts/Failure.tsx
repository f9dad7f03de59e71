import { Alert, Button, Code, Group, List, Stack, Text } from '@mantine/core';
import { IconAlertTriangle, IconRefresh } from '@tabler/icons-react';

import { Problem } from '../client/problem';
import { Ago } from './Ago';

interface FailureProps {
  error: unknown;
  retry?: () => void;
  /** When what is shown all the same was asked for. */
  shownSince?: number;
}

/** What the server said of a request that failed, and how to find it in its log. */
export function Failure({ error, retry, shownSince }: FailureProps) {
  const problem = Problem.from(error);
  return (
    <Alert color="red" variant="outline" radius="lg" role="alert" icon={<IconAlertTriangle />} title={titleOf(problem)} w="100%" maw={640}>
      <Stack gap="xs" align="flex-start">
        <Text size="sm">{problem.detail}</Text>
        {shownSince !== undefined && (
          <Text size="sm">
            What you see is from <Ago at={new Date(shownSince).toISOString()} />.
          </Text>
        )}
        {problem.errors.length > 0 && (
          <List size="sm">
            {problem.errors.map(({ pointer, detail }) => (
              <List.Item key={pointer + detail}>
                <Code>{pointer}</Code> {detail}
              </List.Item>
            ))}
          </List>
        )}
        {problem.requestId !== null && (
          <Text size="xs" c="dimmed">
            Request <Code>{problem.requestId}</Code>
          </Text>
        )}
        {retry !== undefined && (
          <Group>
            <Button size="xs" variant="default" leftSection={<IconRefresh size={14} />} onClick={retry}>
              Try again
            </Button>
          </Group>
        )}
      </Stack>
    </Alert>
  );
}

function titleOf({ status, code }: Problem): string {
  if (code === 'unreachable') return 'No answer from the server';
  if (code === 'defect') return 'This page has a defect';
  if (status === 404) return 'Not found';
  if (status === 403) return 'Not allowed';
  if (status === 429) return 'Too many requests';
  return status >= 500 ? 'The server could not answer' : 'That did not work';
}
