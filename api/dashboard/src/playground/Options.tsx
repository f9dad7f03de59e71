import { Accordion, Autocomplete, Button, Group, MultiSelect, NumberInput, Select, Stack, Switch, Textarea, Title } from '@mantine/core';
import { IconPlus } from '@tabler/icons-react';
import { useMutation, useQuery } from '@tanstack/react-query';

import { formatCount, shortId } from '../parts/format';
import { tellProblem } from '../parts/notify';
import { createSession, ownSessionsQuery, ownToolsQuery } from './queries';
import type { Settings } from './settings';

/** The CLI's own names for the newest of each kind. */
const ALIASES = ['opus', 'sonnet', 'haiku'];

interface OptionsProps {
  values: Settings;
  set: <Name extends keyof Settings>(name: Name, value: Settings[Name]) => void;
}

export function Options({ values, set }: OptionsProps) {
  const tools = useQuery(ownToolsQuery);
  return (
    <Stack>
      <Title order={2} size="h5">
        Settings
      </Title>
      <Autocomplete
        label="Model"
        placeholder="The server’s default"
        data={ALIASES}
        value={values.model}
        onChange={(model) => set('model', model)}
      />
      <SessionChoice value={values.sessionId} choose={(id) => set('sessionId', id)} />
      <Textarea
        label="System prompt"
        placeholder="The CLI’s own"
        maxRows={10}
        value={values.system}
        onChange={({ currentTarget }) => set('system', currentTarget.value)}
      />
      <Accordion variant="default" chevronPosition="left" styles={{ item: { borderBottom: 0 }, control: { paddingInline: 0 }, content: { paddingInline: 0 }, label: { fontSize: 14, fontWeight: 550 } }}>
        <Accordion.Item value="more">
          <Accordion.Control>Tools, thinking and limits</Accordion.Control>
          <Accordion.Panel>
            <Stack>
              <Switch
                label="Choose the tools"
                description="Else it gets those the server gives who asks for none."
                checked={values.tools !== null}
                onChange={({ currentTarget }) => set('tools', currentTarget.checked ? [] : null)}
              />
              {values.tools !== null && (
                <MultiSelect
                  label="Tools"
                  placeholder={values.tools.length === 0 ? 'None' : undefined}
                  data={(tools.data?.data ?? []).filter(({ allowed }) => allowed).map(({ name }) => name)}
                  value={values.tools}
                  onChange={(tools) => set('tools', tools)}
                  searchable
                  clearable
                  clearButtonProps={{ 'aria-label': 'None' }}
                />
              )}
              <Select
                label="Effort"
                placeholder="The model’s default"
                data={['low', 'medium', 'high', 'xhigh', 'max'] satisfies Settings['effort'][]}
                value={values.effort}
                onChange={(effort) => set('effort', effort)}
                clearable
                clearButtonProps={{ 'aria-label': 'The model’s default' }}
              />
              <Select
                label="Thinking"
                placeholder="The model’s default"
                data={['adaptive', 'disabled'] satisfies Settings['thinking'][]}
                value={values.thinking}
                onChange={(thinking) => set('thinking', thinking)}
                clearable
                clearButtonProps={{ 'aria-label': 'The model’s default' }}
              />
              <Group grow align="flex-start">
                <NumberInput
                  label="Model calls"
                  placeholder="No limit"
                  min={1}
                  max={1000}
                  allowDecimal={false}
                  value={values.maxTurns}
                  onChange={(turns) => set('maxTurns', typeof turns === 'number' ? turns : '')}
                />
                <NumberInput
                  label="Cost"
                  placeholder="No limit"
                  prefix="$"
                  min={0}
                  max={1000}
                  decimalScale={4}
                  value={values.budget}
                  onChange={(budget) => set('budget', typeof budget === 'number' ? budget : '')}
                />
              </Group>
            </Stack>
          </Accordion.Panel>
        </Accordion.Item>
      </Accordion>
    </Stack>
  );
}

function SessionChoice({ value, choose }: { value: string | null; choose: (id: string | null) => void }) {
  const sessions = useQuery(ownSessionsQuery);
  const create = useMutation({
    mutationFn: () => createSession('Playground'),
    onSuccess: ({ id }) => choose(id),
    onError: tellProblem,
  });
  const open = (sessions.data?.data ?? []).filter(({ archived }) => !archived);
  return (
    <Group gap="xs" align="flex-end" wrap="nowrap">
      <Select
        label="Session"
        placeholder="None"
        data={open.map(({ id, title, turns }) => ({
          value: id,
          label: `${title ?? 'Untitled'} · ${formatCount(turns)} turns · ${shortId(id)}`,
        }))}
        value={value}
        onChange={choose}
        searchable
        clearable
        clearButtonProps={{ 'aria-label': 'No session' }}
        nothingFoundMessage="No session of yours"
        flex={1}
        miw={0}
      />
      <Button variant="default" px="sm" aria-label="New session" loading={create.isPending} onClick={() => create.mutate()}>
        <IconPlus size={16} />
      </Button>
    </Group>
  );
}
