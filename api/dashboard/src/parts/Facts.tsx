import { Box, Text } from '@mantine/core';
import { Fragment, type ReactNode } from 'react';

import classes from './Facts.module.css';

export type Fact = [label: string, value: ReactNode];

/** What is known of something, line by line. */
export function Facts({ facts }: { facts: (Fact | false | null)[] }) {
  return (
    <Box component="dl" className={classes.facts}>
      {facts.map(
        (fact) =>
          fact !== false &&
          fact !== null && (
            <Fragment key={fact[0]}>
              <Text component="dt" size="sm" c="dimmed">
                {fact[0]}
              </Text>
              <Text component="dd" size="sm" m={0} className={`numbers ${classes.value ?? ''}`}>
                {fact[1]}
              </Text>
            </Fragment>
          ),
      )}
    </Box>
  );
}
