import { Anchor, Box, Breadcrumbs, Group, Stack, Text, Title } from '@mantine/core';
import type { ReactNode } from 'react';
import { Link } from 'react-router';

import { useTitle } from './useTitle';

interface PageProps {
  title: string;
  /** The title as it is shown, where that is more than text. */
  heading?: ReactNode;
  description?: ReactNode;
  parent?: { to: string; label: string };
  actions?: ReactNode;
  children?: ReactNode;
}

export function Page({ title, heading, description, parent, actions, children }: PageProps) {
  useTitle(title);
  return (
    <Stack gap="lg">
      <Group justify="space-between" align="flex-start" gap="md">
        <Box maw="100%" miw={0}>
          {parent !== undefined && (
            <Breadcrumbs mb={4}>
              <Anchor component={Link} to={parent.to} size="sm">
                {parent.label}
              </Anchor>
              <span />
            </Breadcrumbs>
          )}
          <Title order={1} size="h2">
            {heading ?? title}
          </Title>
          {description !== undefined && (
            <Text c="dimmed" mt={4} maw={680} component="div">
              {description}
            </Text>
          )}
        </Box>
        {actions !== undefined && <Group gap="sm">{actions}</Group>}
      </Group>
      {children}
    </Stack>
  );
}
