import { Group } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';

import { useMe } from '../login/hooks';
import { Page } from '../parts/Page';
import { useFilters } from '../parts/useFilters';
import { UserSelect } from '../users/UserSelect';
import { KeyList } from './KeyList';
import { NewKey } from './NewKey';

export function ApiKeysPage() {
  const me = useMe();
  const [filters, setFilter] = useFilters('user');
  const userId = filters.user ?? me.id;
  const newKey = useDisclosure();
  return (
    <Page
      title="API keys"
      description="What programs show to use the API in somebody’s name."
      actions={<NewKey key={userId} userId={userId} dialog={newKey} />}
    >
      <Group>
        <UserSelect label="Whose" value={userId} clearable={false} onChange={(id) => setFilter('user', id === me.id ? null : id)} />
      </Group>
      <KeyList key={userId} userId={userId} make={newKey[1].open} />
    </Page>
  );
}
