import { Avatar, Menu, Text, UnstyledButton } from '@mantine/core';
import { IconBook, IconLogout, IconUser } from '@tabler/icons-react';
import { Link } from 'react-router';

import { useMe } from '../login/hooks';
import { login } from '../login/login';

export function UserMenu() {
  const me = useMe();
  const name = me.name ?? me.email;
  return (
    <Menu position="bottom-end" width={240} shadow="md">
      <Menu.Target>
        <UnstyledButton aria-label={`Your account, ${name}`}>
          <Avatar size={34} radius="xl" color="clay.8" variant="filled" aria-hidden>
            {name.slice(0, 1).toUpperCase()}
          </Avatar>
        </UnstyledButton>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.Label>
          <Text size="sm" fw={600} truncate c="bright">
            {name}
          </Text>
          {me.name != null && (
            <Text size="xs" truncate>
              {me.email}
            </Text>
          )}
        </Menu.Label>
        <Menu.Divider />
        <Menu.Item component={Link} to={`/users/${me.id}`} leftSection={<IconUser size={16} stroke={1.6} />}>
          Your account
        </Menu.Item>
        <Menu.Item component="a" href="/docs" target="_blank" rel="noreferrer" leftSection={<IconBook size={16} stroke={1.6} />}>
          API reference
        </Menu.Item>
        <Menu.Divider />
        <Menu.Item leftSection={<IconLogout size={16} stroke={1.6} />} onClick={() => void login.end()}>
          Log out
        </Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}
