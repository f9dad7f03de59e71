import { MantineProvider } from '@mantine/core';
import { ModalsProvider } from '@mantine/modals';
import { Notifications } from '@mantine/notifications';
import { MutationCache, QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { setNonce } from 'get-nonce';
import { RouterProvider } from 'react-router';

import { Problem } from '../client/problem';
import { theme, variables } from './theme';
import { router } from './routes';

/** The word by which the page's policy knows the styles that are written at run time. */
const nonce = document.querySelector<HTMLMetaElement>('meta[property="csp-nonce"]')?.nonce ?? '';
setNonce(nonce);

/** Whether the same request may do better in a moment. */
function mayPass(error: unknown): boolean {
  const { status } = Problem.from(error);
  return status === 0 || status >= 500;
}

const queries: QueryClient = new QueryClient({
  defaultOptions: {
    queries: { retry: (failures, error) => failures < 2 && mayPass(error), staleTime: 2_000 },
  },
  // Whatever was changed: every page that shows it asks anew.
  mutationCache: new MutationCache({ onSuccess: () => queries.invalidateQueries() }),
});

export function App() {
  return (
    <MantineProvider theme={theme} cssVariablesResolver={variables} defaultColorScheme="auto" getStyleNonce={() => nonce}>
      <QueryClientProvider client={queries}>
        <ModalsProvider labels={{ confirm: 'Yes', cancel: 'Cancel' }}>
          <Notifications position="bottom-right" limit={4} />
          <RouterProvider router={router} />
        </ModalsProvider>
      </QueryClientProvider>
    </MantineProvider>
  );
}
