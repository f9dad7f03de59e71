import { AppShell, Box, Burger, Group, Text } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { useEffect, useRef } from 'react';
import { Link, Outlet, ScrollRestoration, useLocation } from 'react-router';

import { ConversationKeeper } from '../playground/conversation';
import { ColorSchemeSwitch } from './ColorSchemeSwitch';
import { LiveState } from './LiveState';
import { Navigation } from './Navigation';
import classes from './Shell.module.css';
import { UserMenu } from './UserMenu';

export function Shell() {
  const [isOpen, { toggle, close }] = useDisclosure();
  const { pathname } = useLocation();
  const main = useRef<HTMLElement>(null);
  const shown = useRef(pathname);
  useEffect(() => {
    if (shown.current === pathname) return;
    shown.current = pathname;
    close();
    // Where a page of documents would begin to be read anew.
    main.current?.focus({ preventScroll: true });
  }, [pathname, close]);

  return (
    <>
      <a href="#main" className="skip-link">
        Skip to the content
      </a>
      <AppShell header={{ height: 56 }} navbar={{ width: 236, breakpoint: 'md', collapsed: { mobile: !isOpen } }} padding={0}>
        <AppShell.Header className={classes.header}>
          <Group h="100%" px="md" justify="space-between" wrap="nowrap">
            <Group gap="sm" wrap="nowrap">
              <Burger
                opened={isOpen}
                onClick={toggle}
                hiddenFrom="md"
                size="sm"
                aria-label={isOpen ? 'Close the navigation' : 'Open the navigation'}
                aria-expanded={isOpen}
                aria-controls="navigation"
              />
              <Link to="/" className={classes.brand} aria-label="Claude API: overview">
                <img src="/admin/favicon.svg" alt="" width={26} height={26} />
                <Text component="span" fw={650} visibleFrom="xs">
                  Claude API
                </Text>
              </Link>
            </Group>
            <Group gap="xs" wrap="nowrap">
              <LiveState />
              <ColorSchemeSwitch />
              <UserMenu />
            </Group>
          </Group>
        </AppShell.Header>
        <AppShell.Navbar id="navigation" className={classes.navbar} aria-label="Main">
          <Navigation onNavigate={close} />
        </AppShell.Navbar>
        <AppShell.Main id="main" ref={main} tabIndex={-1} className={classes.main}>
          <Box className={classes.content}>
            <ConversationKeeper>
              <Outlet />
            </ConversationKeeper>
          </Box>
        </AppShell.Main>
      </AppShell>
      <ScrollRestoration />
    </>
  );
}
