import { createBrowserRouter, type RouteObject } from 'react-router';

import { Gate } from './Gate';
import { Broken, Loading, NothingHere } from './Places';

const pages: RouteObject[] = [
  { index: true, lazy: async () => ({ Component: (await import('../overview/OverviewPage')).OverviewPage }) },
  { path: 'playground', lazy: async () => ({ Component: (await import('../playground/PlaygroundPage')).PlaygroundPage }) },
  { path: 'jobs', lazy: async () => ({ Component: (await import('../jobs/JobsPage')).JobsPage }) },
  { path: 'jobs/:id', lazy: async () => ({ Component: (await import('../jobs/JobPage')).JobPage }) },
  { path: 'dead-letters', lazy: async () => ({ Component: (await import('../deadLetters/DeadLettersPage')).DeadLettersPage }) },
  { path: 'sessions', lazy: async () => ({ Component: (await import('../sessions/SessionsPage')).SessionsPage }) },
  { path: 'sessions/:id', lazy: async () => ({ Component: (await import('../sessions/SessionPage')).SessionPage }) },
  { path: 'workers', lazy: async () => ({ Component: (await import('../workers/WorkersPage')).WorkersPage }) },
  { path: 'users', lazy: async () => ({ Component: (await import('../users/UsersPage')).UsersPage }) },
  { path: 'users/:id', lazy: async () => ({ Component: (await import('../users/UserPage')).UserPage }) },
  { path: 'api-keys', lazy: async () => ({ Component: (await import('../apiKeys/ApiKeysPage')).ApiKeysPage }) },
  { path: 'tools', lazy: async () => ({ Component: (await import('../tools/ToolsPage')).ToolsPage }) },
  { path: 'usage', lazy: async () => ({ Component: (await import('../usage/UsagePage')).UsagePage }) },
  { path: 'audit-log', lazy: async () => ({ Component: (await import('../auditLog/AuditLogPage')).AuditLogPage }) },
  { path: '*', Component: NothingHere },
];

export const router = createBrowserRouter(
  [
    {
      path: '/',
      Component: Gate,
      HydrateFallback: Loading,
      ErrorBoundary: Broken,
      children: [{ ErrorBoundary: Broken, children: pages }],
    },
  ],
  { basename: '/admin' },
);
