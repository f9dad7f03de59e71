import { Anchor, Center, Loader } from '@mantine/core';
import { IconMapOff } from '@tabler/icons-react';
import { Link, useRouteError } from 'react-router';

import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { Page } from '../parts/Page';

export function Loading() {
  return (
    <Center component="main" mih="100dvh">
      <Loader aria-label="Loading" />
    </Center>
  );
}

export function NothingHere() {
  return (
    <Page title="Nothing here">
      <Empty icon={IconMapOff} title="There is no such page">
        It may have moved, or the address is not complete. <Anchor component={Link} to="/" underline="always">Go to the overview</Anchor>
      </Empty>
    </Page>
  );
}

/** A page that broke, or that could not be loaded after the server was updated. */
export function Broken() {
  const error = useRouteError();
  return (
    <Center mih="60dvh" p="md">
      <Failure error={error} retry={() => window.location.reload()} />
    </Center>
  );
}
