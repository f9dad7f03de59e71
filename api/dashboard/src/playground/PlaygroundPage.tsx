import { Grid, Paper, Stack } from '@mantine/core';
import { IconPlayerPlay } from '@tabler/icons-react';
import { useState } from 'react';

import { Empty } from '../parts/Empty';
import { Page } from '../parts/Page';
import { Composer } from './Composer';
import { bodyOf, Options, type Settings, useSettings } from './Options';
import { sendChat } from './queries';
import { TurnView } from './TurnView';

interface Turn {
  message: string;
  jobId: string;
}

export function PlaygroundPage() {
  const settings = useSettings();
  const [turns, setTurns] = useState<Turn[]>([]);
  const [isBusy, setBusy] = useState(false);
  const send = async (message: string, settings: Settings) => {
    const { id } = await sendChat({ message, ...bodyOf(settings) });
    setTurns((turns) => [...turns, { message, jobId: id }]);
    setBusy(true);
  };
  return (
    <Page title="Playground" description="Send a message as yourself, and watch the model answer.">
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, lg: 8 }}>
          <Stack>
            {turns.length === 0 && (
              <Empty icon={IconPlayerPlay} title="Say something">
                Each message becomes a job. Without a session it stands alone; with one, the model knows what was said before.
              </Empty>
            )}
            {turns.map(({ message, jobId }, place) => (
              <TurnView
                key={jobId}
                message={message}
                jobId={jobId}
                onEnd={place === turns.length - 1 ? () => setBusy(false) : undefined}
              />
            ))}
            <Composer isBusy={isBusy} send={(message) => send(message, settings.values)} />
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, lg: 4 }}>
          <Paper p="lg">
            <Options settings={settings} />
          </Paper>
        </Grid.Col>
      </Grid>
    </Page>
  );
}
