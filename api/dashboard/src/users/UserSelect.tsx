import { Select } from '@mantine/core';
import { useDebouncedValue } from '@mantine/hooks';
import { keepPreviousData, useQuery } from '@tanstack/react-query';
import { useState } from 'react';

import { REST_MS } from '../parts/useTyped';
import { choiceQuery, useUser } from './queries';

interface UserSelectProps {
  label: string;
  placeholder?: string;
  value: string | null;
  clearable?: boolean;
  onChange: (id: string | null) => void;
}

export function UserSelect({ label, placeholder = 'Everybody', value, clearable = true, onChange }: UserSelectProps) {
  const chosen = useUser(value)?.email ?? value;
  const [search, setSearch] = useState('');
  const [settled] = useDebouncedValue(search, REST_MS);
  // The field has the one who is chosen in it: that is no search.
  const query = settled === chosen || settled === value ? '' : settled;
  const users = useQuery({ ...choiceQuery(query), placeholderData: keepPreviousData });
  const options = (users.data?.data ?? []).map(({ id, email }) => ({ value: id, label: email }));
  if (value !== null && chosen !== null && query === '' && !options.some((option) => option.value === value)) {
    options.push({ value, label: chosen });
  }
  return (
    <Select
      label={label}
      placeholder={placeholder}
      data={options}
      // The server looks at their names as well.
      filter={({ options }) => options}
      onSearchChange={setSearch}
      value={value}
      onChange={onChange}
      searchable
      clearable={clearable}
      allowDeselect={clearable}
      clearButtonProps={{ 'aria-label': 'Everybody' }}
      nothingFoundMessage="Nobody"
      w={{ base: '100%', xs: 260 }}
    />
  );
}
