import { Anchor, Badge, Code, Group, Paper, Stack, Text } from '@mantine/core';
import { IconMessages } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { Link } from 'react-router';

import type { Schema } from '../client/client';
import { isRecord } from '../client/problem';
import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { Empty } from '../parts/Empty';
import { Pager } from '../parts/Pager';
import { useCursor } from '../parts/useCursor';
import { messagesQuery } from './queries';

type Message = Schema<'SessionMessage'>;

export function Messages({ sessionId }: { sessionId: string }) {
  const at = useCursor();
  const messages = useQuery(messagesQuery(sessionId, at.cursor));
  return (
    <Answer query={messages} loading={<Lines count={4} height={100} />}>
      {({ data, next_cursor }) =>
        data.length === 0 ? (
          <Empty icon={IconMessages} title="Nothing was said yet">
            What a turn said is here once it completed.
          </Empty>
        ) : (
          <Stack>
            <Pager at={at} next={next_cursor} labels={['Later', 'Earlier']} />
            {/* Newest first they come, and are read the other way. */}
            {data.toReversed().map((message, place) => (
              <MessageView key={`${message.job_id} ${place}`} message={message} />
            ))}
          </Stack>
        )
      }
    </Answer>
  );
}

function MessageView({ message }: { message: Message }) {
  const isUser = message.role === 'user';
  return (
    <Paper p="lg" bg={isUser ? 'transparent' : undefined} component="article" aria-label={isUser ? 'The user' : 'The model'}>
      <Group justify="space-between" mb="xs">
        <Text size="sm" fw={600}>
          {isUser ? 'User' : 'Model'}
          {message.model !== undefined && (
            <Text component="span" size="sm" c="dimmed" fw={400}>
              {' '}
              · {message.model}
            </Text>
          )}
        </Text>
        <Text size="sm" c="dimmed">
          <Ago at={message.at} /> ·{' '}
          <Anchor component={Link} to={`/jobs/${message.job_id}`} size="sm" underline="always">
            job
          </Anchor>
        </Text>
      </Group>
      <Content content={message.content} />
      {message.structured_output !== undefined && (
        <Code block className="said" mt="sm">
          {JSON.stringify(message.structured_output, null, 2)}
        </Code>
      )}
    </Paper>
  );
}

/** Text, or blocks of which a picture is told by its type and size alone. */
function Content({ content }: { content: unknown }) {
  if (typeof content === 'string') return <div className="said">{content}</div>;
  const blocks = Array.isArray(content) ? content.filter(isRecord) : [];
  return (
    <Stack gap="xs">
      {blocks.map((block, place) =>
        typeof block.text === 'string' ? (
          <div key={place} className="said">
            {block.text}
          </div>
        ) : (
          <Badge key={place} variant="default" tt="none">
            {String(block.type)}
          </Badge>
        ),
      )}
    </Stack>
  );
}
