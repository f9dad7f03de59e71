import { Badge, NavLink, ScrollArea, Text } from '@mantine/core';
import {
  IconCoins,
  IconHistory,
  type Icon,
  IconKey,
  IconLayoutDashboard,
  IconListDetails,
  IconMailX,
  IconMessages,
  IconPlayerPlay,
  IconServer2,
  IconTool,
  IconUsers,
} from '@tabler/icons-react';
import { Link, useMatch } from 'react-router';

import { useSystem } from '../live/hooks';
import type { SystemNews } from '../live/socket';
import { formatCount } from '../parts/format';
import classes from './Navigation.module.css';

interface Entry {
  to: string;
  label: string;
  icon: Icon;
  /** What is to be seen there now. */
  count?: (news: SystemNews) => number;
  isAlarming?: boolean;
}

const GROUPS: { label: string; entries: Entry[] }[] = [
  {
    label: 'Now',
    entries: [
      { to: '/', label: 'Overview', icon: IconLayoutDashboard },
      { to: '/playground', label: 'Playground', icon: IconPlayerPlay },
    ],
  },
  {
    label: 'Work',
    entries: [
      { to: '/jobs', label: 'Jobs', icon: IconListDetails, count: ({ queue }) => queue.queued + queue.running },
      { to: '/dead-letters', label: 'Dead letters', icon: IconMailX, count: ({ queue }) => queue.dead_letters, isAlarming: true },
      { to: '/sessions', label: 'Sessions', icon: IconMessages },
      { to: '/workers', label: 'Workers', icon: IconServer2, count: ({ queue }) => queue.workers },
    ],
  },
  {
    label: 'Access',
    entries: [
      { to: '/users', label: 'Users', icon: IconUsers },
      { to: '/api-keys', label: 'API keys', icon: IconKey },
    ],
  },
  {
    label: 'Service',
    entries: [
      { to: '/tools', label: 'Tools', icon: IconTool },
      { to: '/usage', label: 'Usage', icon: IconCoins },
      { to: '/audit-log', label: 'Audit log', icon: IconHistory },
    ],
  },
];

export function Navigation({ onNavigate }: { onNavigate: () => void }) {
  const news = useSystem();
  return (
    <ScrollArea type="auto" h="100%" p="sm">
      {GROUPS.map((group) => (
        <div key={group.label} className={classes.group} role="group" aria-label={group.label}>
          <Text className={classes.label} aria-hidden>
            {group.label}
          </Text>
          {group.entries.map((entry) => (
            <Item key={entry.to} entry={entry} news={news} onNavigate={onNavigate} />
          ))}
        </div>
      ))}
    </ScrollArea>
  );
}

function Item({ entry, news, onNavigate }: { entry: Entry; news: SystemNews | null; onNavigate: () => void }) {
  const isHere = useMatch({ path: entry.to, end: entry.to === '/' }) !== null;
  const count = news === null ? 0 : (entry.count?.(news) ?? 0);
  return (
    <NavLink
      component={Link}
      to={entry.to}
      label={entry.label}
      active={isHere}
      aria-current={isHere ? 'page' : undefined}
      onClick={onNavigate}
      className={classes.link}
      leftSection={<entry.icon size={18} stroke={1.6} aria-hidden />}
      rightSection={
        count > 0 ? (
          <Badge size="sm" circle={count < 10} variant={entry.isAlarming === true ? 'filled' : 'default'} color="red.8" className="numbers">
            {formatCount(count)}
          </Badge>
        ) : undefined
      }
    />
  );
}
