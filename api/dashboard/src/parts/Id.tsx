import { ActionIcon, Anchor, CopyButton, Group, Text, Tooltip } from '@mantine/core';
import { IconCheck, IconCopy } from '@tabler/icons-react';
import { Link } from 'react-router';

import { shortId } from './format';

interface IdProps {
  id: string;
  to?: string;
  whole?: boolean;
}

export function Id({ id, to, whole = false }: IdProps) {
  const text = whole ? id : shortId(id);
  return (
    <Group gap={2} wrap="nowrap" display="inline-flex" maw="100%">
      {to === undefined ? (
        <Text component="span" size="sm" ff="monospace" title={id} style={{ overflowWrap: 'anywhere' }}>
          {text}
        </Text>
      ) : (
        <Anchor component={Link} to={to} size="sm" ff="monospace" title={id} style={{ overflowWrap: 'anywhere' }}>
          {text}
        </Anchor>
      )}
      <Copy value={id} label={`Copy ${id}`} />
    </Group>
  );
}

export function Copy({ value, label }: { value: string; label: string }) {
  return (
    <CopyButton value={value} timeout={1_500}>
      {({ copied, copy }) => (
        <Tooltip label={copied ? 'Copied' : 'Copy'}>
          <ActionIcon variant="subtle" color="gray" size="sm" aria-label={label} onClick={copy}>
            {copied ? <IconCheck size={14} /> : <IconCopy size={14} />}
          </ActionIcon>
        </Tooltip>
      )}
    </CopyButton>
  );
}
