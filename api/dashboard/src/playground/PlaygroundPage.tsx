import { Button, Grid, Paper, Stack } from '@mantine/core';
import { IconPlayerPlay } from '@tabler/icons-react';
import { useState } from 'react';

import { Empty } from '../parts/Empty';
import { Page } from '../parts/Page';
import { Composer } from './Composer';
import { useConversation } from './conversation';
import { Options } from './Options';
import { sendChat } from './queries';
import { bodyOf } from './settings';
import { TurnView } from './TurnView';

export function PlaygroundPage() {
  const [{ turns, settings }, change] = useConversation();
  // The last message that was answered: while that is not the last one, the model is at work.
  const [answered, setAnswered] = useState<string | null>(null);
  const last = turns.at(-1)?.jobId ?? null;
  const send = async (message: string) => {
    const { id } = await sendChat({ message, ...bodyOf(settings) });
    change((conversation) => ({ ...conversation, turns: [...conversation.turns, { message, jobId: id }] }));
  };
  return (
    <Page
      title="Playground"
      description="Send a message as yourself, and watch the model answer."
      actions={
        turns.length > 0 && (
          <Button variant="default" disabled={answered !== last} onClick={() => change((conversation) => ({ ...conversation, turns: [] }))}>
            Clear
          </Button>
        )
      }
    >
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, lg: 8 }}>
          <Stack>
            {turns.length === 0 && (
              <Empty icon={IconPlayerPlay} title="Say something">
                Each message becomes a job. Without a session it stands alone; with one, the model knows what was said before.
              </Empty>
            )}
            {turns.map(({ message, jobId }) => (
              <TurnView
                key={jobId}
                message={message}
                jobId={jobId}
                // Those before it were answered long ago, and are only told again.
                onEnd={() => setAnswered((answered) => (jobId === last ? jobId : answered))}
              />
            ))}
            <Composer isBusy={answered !== last && last !== null} send={send} />
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, lg: 4 }}>
          <Paper p="lg">
            <Options
              values={settings}
              set={(name, value) =>
                change((conversation) => ({ ...conversation, settings: { ...conversation.settings, [name]: value } }))
              }
            />
          </Paper>
        </Grid.Col>
      </Grid>
    </Page>
  );
}
