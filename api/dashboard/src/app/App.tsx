import { MantineProvider } from '@mantine/core';
import { MutationCache, QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { setNonce } from 'get-nonce';
import { RouterProvider } from 'react-router/dom';

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
  // Whatever was changed: all that is shown asks anew, after whoever changed it left what is gone.
  mutationCache: new MutationCache({ onSettled: () => queries.invalidateQueries() }),
});

export function App() {
  return (
    <MantineProvider theme={theme} cssVariablesResolver={variables} defaultColorScheme="auto" getStyleNonce={() => nonce}>
      <QueryClientProvider client={queries}>
        <RouterProvider router={router} />
      </QueryClientProvider>
    </MantineProvider>
  );
}
