import { MantineProvider } from '@mantine/core';
import { MutationCache, QueryClient, QueryClientProvider, type QueryKey } from '@tanstack/react-query';
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
  // Whatever was changed: all that is shown asks anew, but for what is gone.
  mutationCache: new MutationCache({
    onSettled: (_data, _error, _variables, _result, { meta }) => {
      // Nobody waits for that: what the change answered is shown first, and where the lists cannot be had as well.
      void queries.invalidateQueries({ predicate: ({ queryKey }) => !isWithin(queryKey, meta?.gone) });
    },
  }),
});

/** A mutation says in its `meta` what it removed: a page that is left shows it for a moment yet. */
function isWithin(key: QueryKey, gone: unknown): boolean {
  return Array.isArray(gone) && gone.every((part, place) => key[place] === part);
}

export function App() {
  return (
    <MantineProvider theme={theme} cssVariablesResolver={variables} defaultColorScheme="auto" getStyleNonce={() => nonce}>
      <QueryClientProvider client={queries}>
        <RouterProvider router={router} />
      </QueryClientProvider>
    </MantineProvider>
  );
}
